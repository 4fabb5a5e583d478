"""The model's invariants (DESIGN 7), in fp64: tolerances are a few rounding errors of a sum of a thousand terms."""

from __future__ import annotations

import pytest
import torch

from tests.support.tiny import CONNECTORS, TINY, collator_of, maker_of, relative_difference, tiny_parts
from visllama.data.collate import Batch
from visllama.data.samples import masked_sample
from visllama.errors import ConfigError
from visllama.model.language_model import PretrainedLanguageModel
from visllama.model.visllama import VisLlama
from visllama.model.weights import build_model
from visllama.text.tokens import BOI_ID, EOI_ID, IGNORE_INDEX, PLACEHOLDER_ID

EXACT = 1e-12


def gradients(model) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def loss_and_gradients(model, batches: list[Batch], num_targets: int):
    model.zero_grad()
    loss = torch.zeros((), dtype=torch.float64)
    for batch in batches:
        part = model(**batch).loss_sum / num_targets
        part.backward()
        loss += part.detach()
    return loss, gradients(model)


@pytest.mark.parametrize("connector", CONNECTORS)
def test_connector_and_markers_learn_and_nothing_else(make_model, records, connector):
    model = make_model(connector)
    batch = collator_of(model).step([maker_of(model)(r, 0) for r in records])["micro_batches"][0]
    model(**batch).loss_sum.backward()
    for name, parameter in model.named_parameters():
        if name.startswith(("connector.", "markers")):
            assert parameter.grad.isfinite().all() and parameter.grad.norm() > 0, name
        else:
            assert not parameter.requires_grad and parameter.grad is None, name


def test_both_markers_are_used(make_model, records):
    model = make_model()
    batch = collator_of(model).training_batch([maker_of(model)(records[0], 0)])
    model(**batch).loss_sum.backward()
    assert (model.markers.grad.norm(dim=1) > 0).all()


def test_an_image_changes_what_follows_it_and_nothing_before(make_model, records):
    model = make_model()
    sample = maker_of(model)(records[0], 0)
    batch = collator_of(model).training_batch([sample])
    other = batch | {"pixel_values": 255 - batch["pixel_values"]}
    with torch.no_grad():
        a, b = model(**batch).logits[0], model(**other).logits[0]
    first_image = sample.input_ids.index(PLACEHOLDER_ID)
    assert torch.equal(a[:first_image], b[:first_image])
    assert ((a[first_image:] - b[first_image:]).abs().amax(1) > 1e-3).all()


def test_embeds_are_the_published_sequence(make_model, records):
    """BOS [boi] image*K [eoi] text: each in its place, the text untouched."""
    model = make_model()
    batch = collator_of(model).training_batch([maker_of(model, prompt="a picture of")(r, 0) for r in records])
    embeds = model.embed(batch["input_ids"], batch["pixel_values"])
    table, images = model.language_model.get_input_embeddings().weight, model.encode_images(batch["pixel_values"])
    for row, ids in enumerate(batch["input_ids"]):
        assert torch.equal(embeds[row, ids == PLACEHOLDER_ID], images[row])
        assert torch.equal(embeds[row, ids == BOI_ID][0], model.markers[0])
        assert torch.equal(embeds[row, ids == EOI_ID][0], model.markers[1])
        assert torch.equal(embeds[row, ids >= 0], table[ids[ids >= 0]])


@pytest.mark.parametrize("connector", CONNECTORS)
def test_given_image_embeds_are_spliced_as_the_models_own(make_model, records, connector):
    model = make_model(connector)
    batch = collator_of(model).generation_batch([maker_of(model)(r, answered=False) for r in records[:3]])
    embeds = model.splice(batch["input_ids"], model.encode_images(batch["pixel_values"]))
    assert torch.equal(embeds, model.embed(batch["input_ids"], batch["pixel_values"]))
    decoding = {"max_new_tokens": 5, "do_sample": False}
    written = model.write_on(embeds, batch["attention_mask"], **decoding)
    assert torch.equal(written, model.generate(**batch, **decoding))


def test_a_span_of_fewer_places_takes_as_many_vectors(make_model, records):
    model = make_model()
    batch = collator_of(model).training_batch([maker_of(model)(records[0], 0)])
    image = model.encode_images(batch["pixel_values"])
    ids = batch["input_ids"]
    fourth = (ids[0] == PLACEHOLDER_ID).nonzero()[3, 0]
    is_kept = torch.arange(ids.shape[1]) != fourth
    embeds = model.splice(ids[:, is_kept], torch.cat([image[:, :3], image[:, 4:]], dim=1))
    assert torch.equal(embeds, model.splice(ids, image)[:, is_kept])


@pytest.mark.parametrize("connector", CONNECTORS)
def test_right_padded_batch_equals_one_by_one(make_model, records, connector):
    """Also with a mask, and in micro-batches of any size: loss and gradients."""
    model = make_model(connector)
    samples = [maker_of(model)(r, 0) for r in records]
    num_targets = sum(s.num_targets for s in samples)
    assert len({len(s.input_ids) for s in samples}) > 2, "the lengths must differ for padding to matter"
    singles = [collator_of(model).training_batch([s]) for s in samples]
    whole = collator_of(model).training_batch(samples)
    masked = whole | {"attention_mask": _mask(samples, whole["input_ids"])}
    expected_loss, expected = loss_and_gradients(model, singles, num_targets)
    for batches in ([whole], [masked], collator_of(model, 4).step(samples)["micro_batches"]):
        loss, found = loss_and_gradients(model, batches, num_targets)
        assert abs(loss - expected_loss) / expected_loss < EXACT
        assert found.keys() == expected.keys()
        assert max(relative_difference(found[name], expected[name]) for name in found) < EXACT


def _mask(samples, input_ids):
    mask = torch.zeros_like(input_ids)
    for row, sample in enumerate(samples):
        mask[row, : len(sample.input_ids)] = 1
    return mask


def test_no_sample_sees_another(make_model, records):
    model = make_model()
    samples = [maker_of(model)(r, 0) for r in records]
    batch = collator_of(model).training_batch(samples)
    other = {name: tensor.clone() for name, tensor in batch.items()}
    other["pixel_values"][1] = 255 - other["pixel_values"][1]
    with torch.no_grad():
        a, b = model(**batch).logits, model(**other).logits
    assert torch.equal(a[0], b[0]) and torch.equal(a[2:], b[2:])
    assert not torch.equal(a[1], b[1])


def test_dummy_image_of_weight_zero_runs_every_trained_part(make_model):
    model = make_model()
    batch = collator_of(model).training_batch([masked_sample()])
    loss = model(**batch).loss_sum
    loss.backward()
    assert loss.item() == 0
    trained = [p for p in model.parameters() if p.requires_grad]
    assert all(p.grad is not None and p.grad.abs().max() == 0 for p in trained)


def test_loss_is_cross_entropy_of_the_next_supervised_token(make_model, records):
    """By hand: position t predicts t + 1, over supervised positions alone."""
    model = make_model()
    batch = collator_of(model).training_batch([maker_of(model)(records[0], 0)])
    output = model(**batch)
    log_probs = output.logits[0].log_softmax(-1)
    labels = batch["labels"][0]
    by_hand = -sum(log_probs[t - 1, labels[t]] for t in range(1, len(labels)) if labels[t] != IGNORE_INDEX)
    assert abs(output.loss_sum - by_hand) < 1e-10


@pytest.mark.parametrize("decoding", [{"num_beams": 1}, {"num_beams": 4}], ids=["greedy", "beams"])
@pytest.mark.parametrize("connector", CONNECTORS)
def test_generation_batched_equals_single_and_cached_equals_uncached(make_model, records, decoding, connector):
    """Prompts of different lengths, so that the batch is left-padded."""
    model = make_model(connector).eval()
    prompts = ["", "there is", "the picture shows a", "", "a large", "the"]
    samples = [maker_of(model, prompt=p)(r, answered=False) for p, r in zip(prompts, records, strict=True)]
    collator = collator_of(model)
    settings = decoding | {"max_new_tokens": 12, "do_sample": False, "pad_token_id": model.tokenizer.pad_token_id}

    def text(samples, **more):
        return model.tokenizer.batch_decode(
            model.generate(**collator.generation_batch(samples), **settings, **more), skip_special_tokens=True
        )

    batched = text(samples)
    assert len(set(batched)) > 1, "all the same text would prove little"
    assert batched == [text([sample])[0] for sample in samples]
    assert batched == text(samples, use_cache=False)


def test_frozen_parts_stay_in_eval_mode(make_model):
    model = make_model().train()
    assert model.connector.training
    assert not model.vision_encoder.training and not model.language_model.training


def test_markers_start_at_the_mean_embedding(make_model):
    model = make_model(dtype=torch.float32)
    mean = model.language_model.get_input_embeddings().weight.mean(0)
    assert torch.allclose(model.markers, mean.expand(2, -1))


@pytest.mark.parametrize(
    ("connector", "says"),
    [
        ({"kind": "PatchMLPConnector", "arguments": {"num_image_tokens": 4}}, "num_image_tokens=4 does not fit"),
        ({"kind": "MLPConnector", "arguments": {"num_image_tokens": 4, "hidden_dim": -1}}, "model.connector"),
    ],
)
def test_a_connector_that_does_not_fit_is_found_when_it_is_built(connector, says):
    with pytest.raises(ConfigError, match=says):
        build_model(TINY | {"connector": connector}, ("connector", "markers"))


def test_a_token_of_each_patch_is_read_from_the_vision_config(make_model):
    assert make_model("patch_mlp").num_image_tokens == 9


@pytest.mark.parametrize("connector", CONNECTORS)
def test_everything_can_be_built_on_the_meta_device(connector):
    with torch.device("meta"):
        model = build_model(tiny_parts(connector), ("connector", "markers"))
    assert all(p.is_meta for p in model.parameters())


@pytest.mark.parametrize("kind", ["Normed", "Counting"])
def test_buffers_of_a_connector_are_of_its_training_alone(records, kind):
    """Neither the trial at build, nor a batch without images, nor generation leaves anything in them."""
    parts = TINY | {"connector": {"kind": kind, "arguments": {"num_image_tokens": 4}}}
    model = build_model(parts, ("connector", "markers"), plugins=["tests.support.stateful_parts"]).load_base_weights()
    connector = model.connector
    fresh = type(connector)(model.vision_encoder.pooled_dim, 128, 4)
    assert connector.training and all(module.training for module in connector.modules())

    def unchanged() -> bool:
        pairs = zip(connector.named_buffers(), fresh.named_buffers(), strict=True)
        return all(torch.equal(a, b) for (name, a), (_, b) in pairs if name != "num_seen")

    assert unchanged() and getattr(connector, "num_seen", torch.zeros(1)).sum() == 0
    collator, maker = collator_of(model), maker_of(model)
    output = model(**collator.training_batch([masked_sample()]))  # one image in train mode BatchNorm would refuse
    output.loss_sum.backward()
    assert all(p.grad is not None for p in connector.parameters())
    assert unchanged() and connector.training and all(module.training for module in connector.modules())

    model.eval()
    model.generate(**collator.generation_batch([maker(records[0], answered=False)]), max_new_tokens=2, do_sample=False)
    assert unchanged()
    model.train()
    model(**collator.training_batch([maker(record, 0) for record in records]))
    assert not unchanged()


def test_finding_what_cannot_learn_leaves_an_encoder_as_it_was():
    parts = tiny_parts() | {"vision_encoder": {"kind": "SmallCNN", "arguments": {"width": 8}}}
    trainable = ("vision_encoder", "connector", "markers")
    model = build_model(parts, trainable, plugins=["tests.support.stateful_parts"])
    norm = model.vision_encoder.layers[1]
    assert norm.num_batches_tracked == 0 and norm.training and model.vision_encoder.training


def test_a_connector_that_keeps_what_weights_cannot_hold_is_refused():
    class Keeping(torch.nn.Module):
        consumes = "pooled"

        def __init__(self, vision_dim, language_dim):
            super().__init__()
            self.output = torch.nn.Linear(vision_dim, language_dim)

        def forward(self, features):
            return self.output(features).unsqueeze(1)

        def get_extra_state(self):
            return {"seen": 3}

    encoder, source = (
        build_model(tiny_parts(), ("connector",)).vision_encoder,
        PretrainedLanguageModel("visllama:llama"),
    )
    with pytest.raises(ValueError, match="_extra_state: weights hold parameters and buffers alone"):
        VisLlama(encoder, Keeping, source)


def test_a_connector_that_names_no_number_of_tokens_is_asked_for_it():
    class Three(torch.nn.Module):
        consumes = "pooled"

        def __init__(self, vision_dim, language_dim):
            super().__init__()
            self.output = torch.nn.Linear(vision_dim, 3 * language_dim)

        def forward(self, features):
            return self.output(features).unflatten(1, (3, -1))

    encoder = build_model(tiny_parts(), ("connector",)).vision_encoder
    assert VisLlama(encoder, Three, PretrainedLanguageModel("visllama:llama")).num_image_tokens == 3


def test_a_connector_that_makes_nothing_is_refused():
    class Nothing(torch.nn.Module):
        consumes = "pooled"

        def __init__(self, vision_dim, language_dim):
            super().__init__()
            self.language_dim = language_dim

        def forward(self, features):
            return features.new_zeros(len(features), 0, self.language_dim)

    encoder = build_model(tiny_parts(), ("connector",)).vision_encoder
    with pytest.raises(ValueError, match=r"Nothing makes \(1, 0, 128\), and \(1, K, 128\) is needed"):
        VisLlama(encoder, Nothing, PretrainedLanguageModel("visllama:llama"))
