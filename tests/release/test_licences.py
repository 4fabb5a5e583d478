"""Which terms bind what was made from base models."""

from __future__ import annotations

import pytest

from visllama.config.schema import read_conf
from visllama.release.licences import find_data_terms, find_terms, licence_of

LANGUAGE_MODELS = ("llama_7b", "llama_65b", "llama2_7b", "llama3_8b", "vicuna_7b", "mistral_7b", "qwen2_5_7b")
ENCODERS = ("clip_l14", "clip_l14_336", "siglip_so400m", "dinov2_l14")


@pytest.mark.parametrize(
    "path", [*(f"language_model/{name}" for name in LANGUAGE_MODELS), *(f"vision_encoder/{name}" for name in ENCODERS)]
)
def test_each_base_model_of_ours_has_its_terms(path):
    terms = find_terms(read_conf(f"model/{path}.yaml")["path"])
    assert terms is not None and terms.link.startswith("https://") and terms.name


@pytest.mark.parametrize(
    ("names", "licence"),
    [
        (["visllama:clip", "visllama:llama"], "apache-2.0"),
        (["openai/clip-vit-large-patch14", "mistralai/Mistral-7B-v0.1"], "apache-2.0"),
        (["openai/clip-vit-large-patch14", "huggyllama/llama-7b"], "other"),
        (["visllama:clip", "lmsys/vicuna-7b-v1.5"], "llama2"),
        (["visllama:clip", "meta-llama/Meta-Llama-3-8B"], "llama3"),
    ],
)
def test_the_strictest_terms_bind(names, licence):
    assert licence_of(names).licence == licence


def test_what_is_not_known_is_not_guessed():
    assert licence_of(["visllama:clip", "lab/model"]) is None and find_data_terms("mine") is None


@pytest.mark.parametrize("name", ["coco", "cc3m", "coyo", "vqa", "llava_pretrain", "llava_instruct"])
def test_each_published_source_is_told(name):
    assert find_data_terms(name).description
