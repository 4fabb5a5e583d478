"""CLIPScore by the embedded world's own CLIP, whose tokenizer is the small LLaMA's."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoTokenizer, CLIPModel

from tests.support.whole_clip import write_whole_clip
from visllama.data.scenes.source import ScenesSource
from visllama.errors import ConfigError
from visllama.evaluation.clip_score import ClipScorer
from visllama.images.transform import ImageTransform
from visllama.model.locate import locate

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def whole_clip(tmp_path_factory):
    return write_whole_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def scenes():
    return [ScenesSource("test", 70, 5)[number] for number in range(70)]


def score(path: str, scenes: list[dict], captions: list[str]):
    pictures = [[scene["image"]] for scene in scenes]
    return ClipScorer(path, CPU).score(captions, [scene["captions"] for scene in scenes], pictures.__getitem__)


def test_the_right_caption_scores_above_anothers(whole_clip, scenes):
    right = score(whole_clip, scenes, [scene["captions"][0] for scene in scenes])
    wrong = score(whole_clip, scenes, [scene["captions"][0] for scene in [*scenes[1:], scenes[0]]])
    for name in ("CLIPScore", "RefCLIPScore"):
        better = right[name].per_image > wrong[name].per_image
        assert better.mean() > 0.8 and right[name].value > wrong[name].value


def test_it_is_the_papers_formula(whole_clip, scenes):
    scene = scenes[0]
    found = score(whole_clip, [scene], ["a red circle"])
    tokenizer, model = (
        AutoTokenizer.from_pretrained(whole_clip),
        CLIPModel.from_pretrained(whole_clip, dtype=torch.float32).eval(),
    )

    def unit(output):
        vectors = output if isinstance(output, torch.Tensor) else output.pooler_output
        return vectors / vectors.norm(dim=-1, keepdim=True)

    def text(*texts):
        inputs = tokenizer([f"A photo depicts {each}" for each in texts], padding=True, return_tensors="pt")
        return unit(model.get_text_features(inputs["input_ids"], inputs["attention_mask"]))

    transform = ImageTransform.from_processor(_processor(whole_clip))
    pixels = transform(scene["image"])[None] / 255
    mean, std = (torch.tensor(each)[:, None, None] for each in (transform.mean, transform.std))
    with torch.no_grad():
        image = unit(model.get_image_features((pixels - mean) / std))
        candidate = text("a red circle")
        own = 2.5 * max(float(image @ candidate.T), 0)
        nearest = max(float((text(*scene["captions"]) @ candidate.T).max()), 0)
    assert found["CLIPScore"].value == pytest.approx(own, abs=1e-5)  # batches of other sizes round otherwise
    assert found["RefCLIPScore"].value == pytest.approx(2 * own * nearest / (own + nearest), abs=1e-5)


def _processor(path: str):
    from transformers import CLIPImageProcessorPil

    return CLIPImageProcessorPil.from_pretrained(path)


def test_half_a_clip_is_refused():
    with pytest.raises(ConfigError, match="does not end a text with token 3"):
        ClipScorer(locate("visllama:clip"), CPU)
