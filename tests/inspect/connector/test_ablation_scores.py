"""What is written from given vectors is what the model itself would write, and scores are compared picture by picture."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.support.looked_at import captioner_of, loud_model, pictures
from visllama.data.collate import Collator
from visllama.evaluation.captions import score_captions
from visllama.inspect.connector.ablation_scores import AblatedReader, AblationScore, score_ablations
from visllama.inspect.connector.ablations import (
    ALL_FROZEN,
    ALONE,
    BLANK,
    FROZEN,
    NO_MARKERS,
    REMOVED,
    SHUFFLED,
    WHOLE,
    Ablation,
    changed_inputs,
)
from visllama.inspect.connector.pictures import encode, make_samples
from visllama.text.tokens import BOI_ID, EOI_ID, PLACEHOLDER_ID

PICTURES = pictures()


@pytest.fixture(scope="module")
def model():
    return loud_model()


@pytest.fixture(scope="module")
def reader(model):
    captioner = captioner_of(model)
    return AblatedReader(model, captioner, make_samples(captioner.maker, PICTURES.records))


@pytest.fixture(scope="module")
def embeds(model, reader):
    return encode(model, reader.captioner.collator, reader.samples)


def test_the_whole_is_what_the_captioner_writes(model, reader, embeds):
    captions = reader.texts(reader.write(embeds))
    assert captions == reader.captioner(model, PICTURES.records) and len(set(captions)) > 1


def test_what_is_removed_is_as_if_it_had_never_been_there(model, reader, embeds):
    """The places behind it close up: the same as a span that is shorter from the start."""
    ids = reader.samples[0].input_ids
    first = ids.index(PLACEHOLDER_ID)
    shorter = ids[: first + 2] + ids[first + 3 :]
    kept_vectors = torch.cat([embeds[:, :2], embeds[:, 3:]], dim=1)
    expected = _write(model, reader, shorter, kept_vectors)
    assert reader.write(*changed_inputs(Ablation(REMOVED, (3,)), {WHOLE: embeds})) == expected
    assert expected != reader.write(embeds)


def test_without_markers_the_vectors_stand_alone(model, reader, embeds):
    ids = [i for i in reader.samples[0].input_ids if i not in (BOI_ID, EOI_ID)]
    before = torch.tensor([ids]).repeat(len(embeds), 1)
    text = model.language_model.get_input_embeddings()(before.clamp(min=0))
    spliced = text.masked_scatter((before < 0)[..., None], embeds)
    expected = model.write_on(spliced, torch.ones_like(before), **reader.captioner.decoding).tolist()
    assert reader.write(*changed_inputs(Ablation(NO_MARKERS), {WHOLE: embeds})) == expected


def _write(model, reader, ids, embeds) -> list[list[int]]:
    """Write after the same ids for each picture, in the batches of the reader."""
    written = []
    for part in embeds.split(reader.captioner.batch_size):
        input_ids = torch.tensor([ids]).repeat(len(part), 1)
        mask = torch.ones_like(input_ids)
        written += model.write_on(model.splice(input_ids, part), mask, **reader.captioner.decoding).tolist()
    return written


def test_scores_are_paired_differences(reader, embeds):
    shown = {WHOLE: embeds, SHUFFLED: embeds.roll(1, 0), BLANK: embeds[:1].expand_as(embeds)}
    ablations = [Ablation(WHOLE), Ablation(SHUFFLED), Ablation(REMOVED, (1,))]
    results = score_ablations(reader, ablations, shown, PICTURES.keys, PICTURES.references)
    whole, shuffled, _ = results.scores
    assert (whole.difference, whole.interval, whole.changed) == (0, [0, 0], 0)
    captions = dict(zip(PICTURES.keys, results.whole.captions, strict=True))
    assert whole.cider == score_captions(captions, PICTURES.references, ["CIDEr"]).values["CIDEr"]
    assert shuffled.cider - whole.cider == pytest.approx(shuffled.difference, abs=1e-9)
    assert shuffled.interval[0] <= shuffled.difference <= shuffled.interval[1]
    moved = np.mean(np.array(results.whole.captions) != np.roll(results.whole.captions, 1))
    assert shuffled.changed == moved > 0, "each picture has the caption of the one before it"


def test_a_vector_that_never_changes_is_not_missed_at_its_mean(model, reader):
    """Its rows in the output layer are zero but for the bias: the others alone tell the pictures apart."""
    silent = loud_model()
    width = silent.markers.shape[1]
    silent.connector.output.weight.data[width : 2 * width] = 0
    captioner = captioner_of(silent)
    quiet = AblatedReader(silent, captioner, reader.samples)
    # By the same batches as above: the constant is the same number in each.
    shown = {WHOLE: encode(silent, Collator(0, 10, captioner.maker.transform.size_px, 4), reader.samples)}
    ablations = [
        Ablation(WHOLE),
        Ablation(FROZEN, (2,)),
        Ablation(FROZEN, (1,)),
        Ablation(ALL_FROZEN),
        Ablation(ALONE, (2,)),
    ]
    scores = score_ablations(quiet, ablations, shown, PICTURES.keys, PICTURES.references).scores
    _, constant, changing, all_frozen, alone = scores
    assert (constant.difference, constant.changed, constant.interval) == (0, 0, [0, 0])
    assert changing.changed > 0
    assert alone.cider == all_frozen.cider and alone.difference == 0, "a vector alone is compared with all frozen"


@pytest.mark.parametrize(
    ("interval", "is_sure"), [([-2, -1], True), ([-1, 0], False), ([1, 2], True), ([-1, 1], False)]
)
def test_a_difference_is_sure_where_its_interval_leaves_zero_out(interval, is_sure):
    assert AblationScore(Ablation(WHOLE), 1.0, 0.0, interval, 0.0).is_sure == is_sure
