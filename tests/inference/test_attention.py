"""Words look at patches: the rows of one forward pass, laid over what the encoder has seen of the picture."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.demo_server import scene, tiny_pipeline
from visllama.images.transform import ImageTransform
from visllama.inference.attention import (
    Looked,
    _words,
    attention_of_words,
    caption_and_look,
    has_patches,
    heat_map,
    heat_overlay,
)
from visllama.text.tokens import PLACEHOLDER_ID


@pytest.fixture(scope="module")
def pipeline():
    return tiny_pipeline("patch_mlp")


def test_a_model_with_a_token_for_each_patch_can_be_asked(pipeline):
    assert has_patches(pipeline.model)
    assert not any(has_patches(tiny_pipeline(name).model) for name in ("mlp", "resampler"))


@pytest.mark.parametrize("num_patches", [None, (4, 4), -9])
def test_an_encoder_may_call_anything_its_patches(num_patches):
    model = tiny_pipeline("patch_mlp").model
    model.vision_encoder.num_patches = num_patches
    assert not has_patches(model)


@pytest.mark.parametrize("settings", [{}, {"num_beams": 3}])
def test_the_caption_is_the_pipelines_own(pipeline, settings):
    for index in range(3):
        looked = caption_and_look(pipeline, scene(index), settings | {"max_new_tokens": 15})
        assert looked.caption == pipeline.caption(scene(index), max_new_tokens=15, **settings)
        assert looked.words == looked.caption.split() and len(looked.maps) == len(looked.words)


def test_the_maps_are_the_attention_of_the_words(pipeline):
    """Of the first word, which is one token here, against what the model itself gives for the same ids."""
    looked = caption_and_look(pipeline, scene(), {"max_new_tokens": 15})
    model, maker = pipeline.model, pipeline.maker
    sample = maker({"key": "", "image": scene(), "captions": [""]}, answered=False)
    (written,) = pipeline.write([sample], {"max_new_tokens": 15})
    ids = [*sample.input_ids, *written]
    assert (
        len(maker.tokenizer.decode(written[:1]).split()) == 1 and len(maker.tokenizer.decode(written[:2]).split()) == 2
    )
    embeds = model.embed(torch.tensor([ids]), sample.pixel_values[0][None])
    model.language_model.set_attn_implementation("eager")
    with torch.no_grad():
        layers = model.language_model(inputs_embeds=embeds, output_attentions=True).attentions
    model.language_model.set_attn_implementation("sdpa")
    mean = torch.stack(layers)[:, 0].mean((0, 1))
    places = [place for place, i in enumerate(ids) if i == PLACEHOLDER_ID]
    expected = mean[len(sample.input_ids), places]
    # fp32: a sum over layers and heads in another order
    assert np.allclose(looked.maps[0].ravel(), expected.numpy(), rtol=1e-4, atol=1e-8)
    assert looked.maps[0].shape == (int(len(places) ** 0.5),) * 2
    assert 0 < looked.maps[0].sum() < 1, "some of it goes to other tokens"


def test_the_model_is_as_before(pipeline):
    before = pipeline.model.language_model.config._attn_implementation
    caption = pipeline.caption(scene())
    caption_and_look(pipeline, scene(), {"max_new_tokens": 5})
    assert pipeline.model.language_model.config._attn_implementation == before == "sdpa"
    assert pipeline.caption(scene()) == caption


def test_silence_has_no_words(pipeline):
    looked = caption_and_look(pipeline, scene(), {"max_new_tokens": 5, "suppress_tokens": _all_but_the_end(pipeline)})
    assert (looked.caption, looked.words, looked.maps) == ("", [], [])


def _all_but_the_end(pipeline) -> list[int]:
    return [i for i in range(len(pipeline.maker.tokenizer)) if i not in pipeline.end_ids]


@pytest.mark.parametrize("connector", ["mlp", "resampler"])
def test_words_attend_to_vectors_that_are_no_patches_too(connector):
    reader = tiny_pipeline(connector)
    sample = reader.maker({"key": "", "image": scene(), "captions": [""]}, answered=False)
    (written,) = reader.write([sample], {"max_new_tokens": 15})
    words, shares = attention_of_words(reader.model, sample, written, reader.end_ids)
    assert words == reader.caption(scene(), max_new_tokens=15).split()
    assert shares.shape == (len(words), 10) and (shares > 0).all() and (shares.sum(1) < 1).all()


def test_words_that_one_token_begins_share_it():
    """Of every three tokens here one is two words."""

    class Tokenizer:
        def decode(self, ids, skip_special_tokens):
            return "".join({0: "a", 1: " b c", 2: "d"}[i] for i in ids)

    assert _words(Tokenizer(), [0, 1, 2]) == (["a", "b", "cd"], [range(0, 1), range(1, 3), range(2, 3)])


def test_an_overlay_has_a_pixel_for_each_patch():
    overlay = np.asarray(heat_overlay(np.array([[0.1, 0.2], [0.3, 0.5]], np.float32)))
    assert overlay.shape == (2, 2, 4)
    assert overlay[..., 3].ravel().tolist() == [89, 114, 140, 191], "0.35 to 0.75 of 255, by the attention"
    assert np.ptp(np.asarray(heat_overlay(np.ones((2, 2), np.float32)))[..., :3].reshape(4, 3), axis=0).max() == 0


def _hottest(
    fit: str, size: tuple[int, int], place: tuple[int, int], resize_px: int | None = None
) -> tuple[float, float]:
    """Return where the brightest spot lies on a picture, as shares of its sides."""
    transform = ImageTransform(24, (0.5,) * 3, (0.5,) * 3, fit, resize_px)
    attention = np.zeros((6, 6), np.float32)
    attention[place] = 1
    looked = Looked("a", ["a"], [attention], transform)
    shown = np.asarray(heat_map(Image.new("RGB", size), looked, 0).convert("L"), np.float32)
    row, column = np.argwhere(shown == shown.max()).mean(0)
    return (column + 0.5) / shown.shape[1], (row + 0.5) / shown.shape[0]


@pytest.mark.parametrize(
    ("fit", "size", "expected"),
    [
        ("squash", (600, 300), (0.25, 0.25)),
        ("crop", (600, 300), (0.25 + 0.25 / 2, 0.25)),
        ("crop", (300, 600), (0.25, 0.25 + 0.25 / 2)),
        ("crop", (300, 300), (0.25, 0.25)),
        ("crop", (60, 60), (0.25, 0.25)),
    ],
)
def test_a_patch_lies_where_the_encoder_saw_it(fit, size, expected):
    """The second of six, whose middle is at a quarter of the part that is seen. To a few pixels of 300."""
    assert _hottest(fit, size, (1, 1)) == pytest.approx(expected, abs=0.01)


def test_what_was_padded_lies_beside_the_picture():
    """A wide picture fills the middle half of the rows."""
    column, row = _hottest("pad", (600, 300), (2, 1))
    assert column == pytest.approx(0.25, abs=0.01)
    assert row == pytest.approx((2.5 / 6 - 0.25) / 0.5, abs=0.01)


def test_a_border_that_is_cut_is_seen_by_no_patch():
    """Of 32 pixels 24 are seen: an eighth is cut off on each side."""
    assert _hottest("crop", (320, 320), (1, 1), resize_px=32) == pytest.approx((1 / 8 + 0.75 / 4,) * 2, abs=0.01)


def test_a_large_picture_is_shown_small():
    transform = ImageTransform(24, (0.5,) * 3, (0.5,) * 3)
    looked = Looked("a", ["a"], [np.ones((6, 6), np.float32)], transform)
    assert heat_map(Image.new("RGB", (4000, 2000)), looked, 0).size == (768, 384)
