"""The language model that is exported, with LoRA merged, and LoRA alone as PEFT reads it."""

from __future__ import annotations

import json

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

import visllama
from tests.support.exported import VICUNA
from tests.support.families import save_language_model
from tests.support.tiny import CONNECTORS
from visllama.evaluation.runner import sample_maker
from visllama.release.language_model import write_adapter, write_language_model
from visllama.release.read_back import make_probe, read_back_adapter, read_back_language_model


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


@pytest.mark.parametrize("connector", CONNECTORS)
@pytest.mark.parametrize("lora", [False, True])
def test_it_says_what_the_weights_say_when_it_is_given_their_vectors(save_model, records, folder, connector, lora):
    """Of every connector: `embed` of the unmerged weights, read by the merged language model's own `generate`."""
    model, weights = save_model(connector, lora)
    pipeline = visllama.load(weights, accelerator="cpu")
    images = [record["image"] for record in records]
    expected = pipeline.caption(images, max_new_tokens=12)

    write_language_model(folder, model.merge_adapter(), VICUNA, pipeline.end_ids, 40, "5GB")
    exported = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    inputs_embeds, attention_mask = pipeline.embed(images)
    ids = exported.generate(
        inputs_embeds=inputs_embeds, attention_mask=attention_mask, max_new_tokens=12, do_sample=False
    )
    found = [" ".join(text.split()) for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]
    assert found == expected and len(set(found)) > 1


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "gemma"])
def test_its_logits_are_the_models(save_model, folder, tmp_path, family):
    model, _ = save_model("mlp", True, language_model=save_language_model(family, tmp_path / family))
    model.merge_adapter()
    probe = make_probe(model, sample_maker(model, VICUNA))
    write_language_model(folder, model, VICUNA, [3], 40, "5GB")
    assert read_back_language_model(folder, probe, torch.float32) <= 1e-5
    config = json.loads((folder / "config.json").read_text())
    assert config["rope_theta"] == 10000.0 and config["architectures"] == [type(model.language_model).__name__]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert "USER: hi ASSISTANT:" in tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_peft_reads_the_adapter_over_the_base_model(save_model, folder, tmp_path, family):
    base = save_language_model(family, tmp_path / family)
    model, _ = save_model("mlp", True, language_model=base)
    probe = make_probe(model, sample_maker(model, VICUNA))
    write_adapter(folder, model, "organisation/base")
    assert sorted(path.name for path in folder.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    assert read_back_adapter(folder, probe, lambda: AutoModelForCausalLM.from_pretrained(base)) == 0
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "organisation/base" and config["task_type"] == "CAUSAL_LM"

    plain = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        without = plain(probe.text_ids).logits
        merged = PeftModel.from_pretrained(plain, folder).merge_and_unload()(probe.text_ids).logits
    assert (without - probe.text_logits).abs().max() > 1e-2, "the adapter matters"
    assert (merged - probe.text_logits).abs().max() < 1e-4
