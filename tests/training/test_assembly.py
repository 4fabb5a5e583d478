"""What a run is made of, before any weight is loaded: the published sizes on the meta device, and what is refused."""

from __future__ import annotations

import sys

import pytest
from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPVisionConfig, LlamaConfig

from tests.support.families import save_language_model
from tests.support.tiny import CONNECTORS
from tests.support.verbs import train
from visllama.config.plain import plain
from visllama.errors import ConfigError
from visllama.model.locate import locate
from visllama.training.assembly import build_assembly


@pytest.fixture(scope="module")
def seven_b(tmp_path_factory):
    """The published models' shapes in the hub's layout, without weights."""
    root = tmp_path_factory.mktemp("models")
    clip, llama = root / "openai" / "clip-vit-large-patch14", root / "huggyllama" / "llama-7b"
    CLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, image_size=224, patch_size=14,
        projection_dim=768,
    ).save_pretrained(clip)  # fmt: skip
    CLIPImageProcessorPil().save_pretrained(clip)
    LlamaConfig(
        vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32
    ).save_pretrained(llama)
    AutoTokenizer.from_pretrained(locate("visllama:llama")).save_pretrained(llama)
    return root


def count(module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_the_sizes_of_every_connector_at_7b(compose_config, seven_b):
    """On the meta device: 7B shapes, no memory. All but the published one are bottlenecks of under 1% of LLaMA."""
    sizes = {}
    for connector in CONNECTORS:
        cfg = compose_config(
            "train", "model=real", f"model/connector={connector}", f"paths.models={seven_b}", "check_only=true"
        )
        model = build_assembly(plain(cfg)).model
        assert all(p.is_meta for p in model.parameters())
        sizes[connector] = count(model.connector)
        if connector == "patch_mlp":
            assert model.num_image_tokens == 256, "224 / 14 squared"
    llama = count(model.language_model)
    print(
        f"\nLLaMA-7B {llama:,}",
        *[f"{name:14} {size:13,}  {100 * size / llama:.2f}%" for name, size in sizes.items()],
        sep="\n",
    )
    assert llama == 6_738_415_616 and count(model.vision_encoder) == 303_966_208
    assert sizes.pop("mlp_published") == 854_650_880
    assert all(size < 0.01 * llama for size in sizes.values())


def test_our_recipe_at_7b_is_as_large_as_it_says(compose_config, seven_b):
    cfg = compose_config(
        "train", "experiment=coco_patch_7b", "data=scenes", f"paths.models={seven_b}", "check_only=true"
    )
    model = build_assembly(plain(cfg)).model
    assert model.num_image_tokens == 32 and round(count(model.connector) / 1e6) == 30


BARE = "stage.template={} is not written around the captions of scenes:\nthey have no prompt"


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["stage.template=vicuna"], BARE.format("vicuna")),
        (["stage.template={human: 'Q {human} A'}"], BARE.format("{...}")),
        (["stage=finetune"], BARE.format("question_answer")),
        (["stage.template=vicuna", "stage.prompt=Describe it.", "data.sources.scenes.prompt=''"], BARE.format("vicuna")),
        ([], None),
        (["stage.template=vicuna", "stage.prompt=Describe it."], None),
        (["stage.template=vicuna", "data.sources.scenes.prompt=Describe it."], None),
        (["stage=finetune", "data=scenes", "data/source=[scenes_questions,scenes_instructions]"], None),
    ],
)  # fmt: skip
def test_captions_that_no_template_stands_around_are_named(configure, capsys, overrides, said):
    """A template is for what is asked; without a prompt, choosing one changes nothing of a caption but its end."""
    build_assembly(configure("train", *overrides, "check_only=true"))
    printed = capsys.readouterr().out
    assert (said in printed) if said else ("stage.template" not in printed)


def test_samples_longer_than_the_positions_are_refused(configure):
    with pytest.raises(
        ConfigError, match=r"stage\.max_text_tokens=500 and model\.connector\.num_image_tokens=10 .* up to 513"
    ):
        build_assembly(configure("train", "stage.max_text_tokens=500"))
    with pytest.raises(ConfigError, match=r"decoding\.max_new_tokens=500 .* up to 513"):
        build_assembly(configure("train", "decoding.max_new_tokens=500"))


def test_a_tokenizer_that_does_not_fit_is_refused_before_any_weight(configure, tmp_path):
    folder = save_language_model("llama", tmp_path / "llama", vocab_size=400)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"model\.language_model: path=.*its tokenizer does not fit"):
        build_assembly(configure("train", f"model.language_model.path={folder}"))


def test_a_folder_of_another_kind_is_named_by_its_part(configure):
    with pytest.raises(ConfigError, match=r"^model\.language_model: path=.*clip holds a 'clip', which is no causal"):
        build_assembly(configure("train", "model.language_model.path=visllama:clip"))


def test_a_class_that_its_name_would_not_find_again_is_refused(compose_config, tmp_path, monkeypatch):
    """Of two classes of one name, what was trained could not be told from the other when it is loaded."""
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    (tmp_path / "twice.py").write_text(
        "from visllama.model.connector import MLPConnector as Ours\nclass MLPConnector(Ours): pass\n"
    )
    with pytest.raises(ConfigError, match="another class is called MLPConnector too"):
        train(compose_config("train", "plugins=[twice]", "model.connector._target_=twice.MLPConnector"))


def test_no_whole_batch_is_an_error(configure):
    with pytest.raises(ConfigError, match="makes no whole batch"):
        build_assembly(configure("train", "stage.epochs=0.001"))
