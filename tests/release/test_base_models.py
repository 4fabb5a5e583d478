"""What a card says of the base models: names that others can use, and licences that are known alone."""

from __future__ import annotations

import pytest

from visllama.release.base_models import BaseModel, base_models, base_models_section
from visllama.release.run_facts import RunFacts


def make_facts(vision_encoder: dict, language_model: dict) -> RunFacts:
    """Return the facts about weights of which only the arguments of the base models are known."""
    parts = {
        "vision_encoder": {"kind": "CLIPVisionEncoder", "arguments": vision_encoder},
        "language_model": {"kind": "PretrainedLanguageModel", "arguments": language_model},
    }
    return RunFacts({"parts": parts}, {}, folder=None, metrics={}, config={}, words=None, first=None)


def language_model_of(arguments: dict, hub_id: str | None = None) -> BaseModel:
    """Return the language model that a description has with some arguments."""
    _, language_model = base_models(make_facts({}, arguments), {"language_model": hub_id})
    return language_model


def test_the_vision_encoder_comes_first():
    facts = make_facts({"path": "openai/clip-vit-large-patch14"}, {"path": "visllama:llama"})
    assert base_models(facts, {}) == [
        BaseModel("vision encoder", "openai/clip-vit-large-patch14", "", "CLIPVisionEncoder", is_on_hub=True),
        BaseModel("language model", "visllama:llama", "", "PretrainedLanguageModel", is_on_hub=False),
    ]


def test_a_given_id_replaces_the_path_and_its_commit():
    arguments = {"path": "huggyllama/llama-7b", "revision": "c0ffee"}
    assert language_model_of(arguments).revision == "c0ffee"
    renamed = language_model_of(arguments, "meta-llama/Llama-2-7b-hf")
    assert (renamed.name, renamed.revision) == ("meta-llama/Llama-2-7b-hf", "")


@pytest.mark.parametrize("arguments", [{}, {"path": None}, {"path": 5, "revision": ["a"]}])
def test_without_a_path_it_is_named_by_its_kind(arguments):
    model = language_model_of(arguments)
    assert (model.name, model.revision, model.is_on_hub) == ("PretrainedLanguageModel", "", False)


def test_a_folder_has_the_licence_of_no_published_model(tmp_path, monkeypatch):
    """Also one whose path looks like an id on the hub: of a folder only the name is published."""
    (tmp_path / "huggyllama" / "llama-7b").mkdir(parents=True)
    assert language_model_of({"path": "huggyllama/llama-7b"}).terms is not None

    monkeypatch.chdir(tmp_path)
    model = language_model_of({"path": "huggyllama/llama-7b"})
    assert (model.name, model.is_on_hub, model.terms) == ("llama-7b", False, None)
    assert model.markdown == "llama-7b (a folder of the trainer's)"


def test_the_table_has_commits_and_licences():
    models = [
        BaseModel("vision encoder", "openai/clip-vit-x", "c0ffee", "A", is_on_hub=True),
        BaseModel("language model", "somebody/else", "", "B", is_on_hub=True),
        BaseModel("language model", "mine", "", "B", is_on_hub=False),
        BaseModel("language model", "visllama:llama", "", "B", is_on_hub=False),
    ]
    _, _, encoder, published, folder, shipped = base_models_section(models).splitlines()
    assert "[openai/clip-vit-x](https://huggingface.co/openai/clip-vit-x), commit c0ffee | [MIT](" in encoder
    assert published.endswith("| see its page |") and folder.endswith("(a folder of the trainer's) | not known |")
    assert shipped == "| language model | visllama:llama | [Apache-2.0](https://www.apache.org/licenses/LICENSE-2.0) |"
