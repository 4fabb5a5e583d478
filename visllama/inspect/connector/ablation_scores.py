"""Caption pictures under each ablation, and score the captions: CIDEr, and its difference to a baseline's CIDEr.

Scores are on pycocoevalcap's scale, where a CIDEr of 1 is printed as 100 in papers. CIDEr's document frequencies are
those of the references, so they are the same for all ablations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from visllama.console import bars
from visllama.data.samples import Sample
from visllama.evaluation.captioner import Captioner
from visllama.evaluation.captions import CaptionScorer
from visllama.evaluation.statistics import bootstrap_intervals, mean_metric
from visllama.inspect.connector.ablations import WHOLE, Ablation, changed_inputs
from visllama.model.visllama import VisLlama


@dataclass(frozen=True)
class AblationScore:
    """The CIDEr of the captions that were written under one ablation, on pycocoevalcap's scale (1 is printed as 100).

    Attributes:
        ablation: The ablation.
        cider: The CIDEr over all pictures.
        difference: `cider` minus the CIDEr under `ablation.baseline`; negative where the ablation costs something.
        interval: The 95% interval of the difference, as `[low, high]`, by the paired bootstrap over pictures.
        changed: The share of captions, in [0, 1], that are not the caption that was written when nothing was left out.
    """

    ablation: Ablation
    cider: float
    difference: float
    interval: list[float]
    changed: float

    @property
    def is_sure(self) -> bool:
        """Whether the interval of the difference lies wholly above or wholly below zero."""
        low, high = self.interval
        return low > 0 or high < 0


class WrittenCaptions(NamedTuple):
    """The captions that were written under one ablation.

    Attributes:
        captions: The caption of each picture.
        ids: The token ids of each caption as the model has written them, end token and padding included.
        cider: The CIDEr of each caption, in the order of the pictures, on pycocoevalcap's scale.
        mean_cider: The CIDEr over all pictures.
    """

    captions: list[str]
    ids: list[list[int]]
    cider: Float[np.ndarray, " N"]
    mean_cider: float


class AblationResults(NamedTuple):
    """The results of all ablations.

    Attributes:
        scores: The score of each ablation, in the order in which the ablations were given.
        whole: The captions that were written when nothing was left out.
    """

    scores: list[AblationScore]
    whole: WrittenCaptions


class AblatedReader:
    """Write captions from given image vectors, so that vectors can be changed or left out first.

    Args:
        model: The model that writes the captions.
        captioner: The captioner whose collator, batch size, tokenizer and decoding are used.
        samples: The Samples (tokenised prompts) of the pictures, one picture each; the pixels are not encoded again.
    """

    def __init__(self, model: VisLlama, captioner: Captioner, samples: Sequence[Sample]) -> None:
        self.model = model
        self.captioner = captioner
        self.samples = samples

    @torch.inference_mode()
    def write(self, image_embeds: Float[Tensor, "N K D"], kept: Bool[Tensor, " span"] | None = None) -> list[list[int]]:
        """Return the token ids of the caption that the model writes of each picture, in the order of the Samples.

        Args:
            image_embeds: The K image vectors of each picture, in the order of the Samples.
            kept: A mask over the K + 2 positions of an image span (`[boi]`, the vectors, `[eoi]`), true where the
                position is read; None reads all. A position that is not read is left out, and the positions behind it
                move up.
        """
        # By the batches of the evaluation, whose captions these have to be.
        size = self.captioner.batch_size
        device = self.model.markers.device
        ids_of_captions = []
        for start in range(0, len(self.samples), size):
            rows_of_batch = slice(start, start + size)
            batch = self.captioner.collator.generation_batch(self.samples[rows_of_batch])
            input_ids = batch["input_ids"].to(device)
            attention_mask = batch["attention_mask"].to(device)
            embeds = self.model.splice(input_ids, image_embeds[rows_of_batch].to(device))

            if kept is not None:
                # Not by the mask: where `[eoi]` is the last position, the model would write on from what it says.
                is_read = torch.ones_like(input_ids, dtype=torch.bool)
                # The positions of a span have negative ids. Each row leaves out as many, so all keep one length.
                is_read[input_ids < 0] = kept.to(device).repeat(len(input_ids))
                rows = (len(input_ids), -1)
                embeds = embeds[is_read].unflatten(0, rows)
                attention_mask = attention_mask[is_read].unflatten(0, rows)

            ids = self.model.write_on(embeds, attention_mask, **self.captioner.decoding)
            ids_of_captions += ids.tolist()
        return ids_of_captions

    def texts(self, ids_of_captions: list[list[int]]) -> list[str]:
        """Return captions as texts of one line, without special tokens.

        Args:
            ids_of_captions: The token ids of each caption, as `write` returns them.
        """
        captions = self.captioner.tokenizer.batch_decode(ids_of_captions, skip_special_tokens=True)
        return [" ".join(caption.split()) for caption in captions]


def score_ablations(
    reader: AblatedReader,
    ablations: Sequence[Ablation],
    shown: Mapping[str, Float[Tensor, "N K D"]],
    keys: Sequence[str],
    references: Mapping[str, Sequence[str]],
) -> AblationResults:
    """Caption all pictures under each ablation, score the captions, and compare their CIDEr with the baseline's.

    A progress bar is shown on the terminal.

    Args:
        reader: The reader that writes the captions.
        ablations: The ablations; `whole` and the baseline of each one have to be among them.
        shown: The K image vectors of each of N pictures, by kind: those of the picture itself under `whole`, those of
            another picture in its place under `shuffled_images`, and those of a gray one under `blank_images`.
        keys: The id of each picture, in the order of the reader's Samples.
        references: The reference captions of each picture, by its id.

    Returns:
        The score of each ablation, and the captions that were written under `whole`.

    Raises:
        KeyError: If `whole` or the baseline of an ablation is not among `ablations`.
    """
    scorer = CaptionScorer(references)
    captions_of: dict[Ablation, WrittenCaptions] = {}
    with bars() as progress:
        task = progress.add_task("captions", total=len(ablations))
        for ablation in ablations:
            progress.update(task, description=ablation.name)

            image_embeds, kept = changed_inputs(ablation, shown)
            ids = reader.write(image_embeds, kept)
            captions_of[ablation] = _score(scorer, keys, reader.texts(ids), ids)
            progress.advance(task)

    # Compared only now, when all baselines are written.
    whole = captions_of[Ablation(WHOLE)]
    scores = []
    for ablation, captions in captions_of.items():
        baseline = captions_of[Ablation(ablation.baseline)]
        scores.append(_compare(ablation, captions, baseline, whole))
    return AblationResults(scores, whole)


def _score(
    scorer: CaptionScorer,
    keys: Sequence[str],
    captions: list[str],
    ids: list[list[int]],
) -> WrittenCaptions:
    """Return captions with their CIDEr, in the order of the pictures."""
    caption_by_key = dict(zip(keys, captions, strict=True))
    scores = scorer.score(caption_by_key, ("CIDEr",))

    # The scorer has an order of its own.
    ciders = scores.metrics["CIDEr"].per_image
    cider_by_key = dict(zip(scores.ids, ciders, strict=True))
    return WrittenCaptions(
        captions=captions,
        ids=ids,
        cider=np.array([cider_by_key[key] for key in keys]),
        mean_cider=scores.values["CIDEr"],
    )


def _compare(
    ablation: Ablation,
    captions: WrittenCaptions,
    baseline: WrittenCaptions,
    whole: WrittenCaptions,
) -> AblationScore:
    """Return the score of an ablation: its CIDEr, how it differs from the baseline, and how many captions changed."""
    # The interval is of differences picture by picture, which makes it paired.
    difference = captions.cider - baseline.cider
    intervals = bootstrap_intervals({"difference": mean_metric(difference)})

    pairs = zip(captions.captions, whole.captions, strict=True)
    is_changed = [caption != of_whole for caption, of_whole in pairs]
    return AblationScore(
        ablation=ablation,
        cider=captions.mean_cider,
        difference=float(difference.mean()),
        interval=intervals["difference"],
        changed=float(np.mean(is_changed)),
    )
