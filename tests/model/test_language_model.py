"""Language models in the layouts that the hub has, and tokenizers with and without what we need."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest
import sentencepiece
import torch
from safetensors import safe_open

from tests.support.families import VOCABULARY, save_language_model
from visllama.data.scenes import language
from visllama.errors import ConfigError
from visllama.model.language_model import PretrainedLanguageModel, norm_in_double


def test_built_without_memory_then_loaded():
    source = PretrainedLanguageModel("visllama:llama")
    assert next(source.build().parameters()).is_meta
    loaded = source.load(torch.bfloat16)
    assert next(loaded.parameters()).dtype == torch.bfloat16 and not loaded.training


def test_tokenizer_has_llamas_special_ids_and_padding():
    tokenizer = PretrainedLanguageModel("visllama:llama").tokenizer
    ids = (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.unk_token_id, tokenizer.eos_token_id)
    assert ids == (0, 1, 2, 3), "with </s> at 2, CLIP's text half would pool by the largest id"


def test_a_tokenizer_without_padding_pads_with_its_end(tmp_path):
    assert PretrainedLanguageModel(str(save_language_model("llama", tmp_path))).tokenizer.pad_token == "</s>"


def test_sharded_safetensors_are_read_whole(tmp_path):
    folder = save_language_model("llama", tmp_path, max_shard_size="40KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 2
    tensors = {}
    for shard in shards:
        with safe_open(shard, framework="pt") as file:
            tensors |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    loaded = PretrainedLanguageModel(str(folder)).load(torch.float32).state_dict()
    assert set(loaded) == set(tensors) and all(torch.equal(loaded[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize("tied", [True, False])
def test_tied_and_untied_heads(tmp_path, tied):
    model = PretrainedLanguageModel(str(save_language_model("llama", tmp_path, tie_word_embeddings=tied))).load(
        torch.float32
    )
    head, embeddings = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    assert (head.data_ptr() == embeddings.data_ptr()) is tied and torch.equal(head, embeddings) is tied


def test_grouped_query_attention_is_read(tmp_path):
    model = PretrainedLanguageModel(str(save_language_model("llama", tmp_path, num_key_value_heads=1))).load(
        torch.float32
    )
    attention = model.model.layers[0].self_attn
    assert attention.k_proj.weight.shape[0] * 4 == attention.q_proj.weight.shape[0]


def test_a_folder_with_tokenizer_model_alone(tmp_path):
    """LLaMA's own file, of sentencepiece: read as the reference reads it, BOS and all."""
    save_language_model("llama", tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).unlink()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([language.document(i) for i in range(1000)]), model_prefix=str(tmp_path / "tokenizer"), vocab_size=VOCABULARY - 20,
        model_type="bpe", byte_fallback=True, pad_id=-1, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"})
    )
    tokenizer = PretrainedLanguageModel(str(tmp_path)).tokenizer
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    reference = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    for text in ("a small red ring", "the picture shows two stars", "unheard-of: zebra 7"):
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == reference.encode(text), text


def test_a_tokenizer_that_does_not_fit_is_refused(tmp_path):
    folder = save_language_model("llama", tmp_path, vocab_size=400)
    with pytest.raises(ConfigError, match="makes ids up to 479, and the model has 400 embeddings"):
        PretrainedLanguageModel(str(folder))


def test_a_tokenizer_without_an_end_is_refused(tmp_path):
    folder = save_language_model("llama", tmp_path)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["eos_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="no end token"):
        PretrainedLanguageModel(str(folder))


def test_a_folder_without_weights_or_config_is_named(tmp_path):
    folder = save_language_model("llama", tmp_path)
    (folder / "model.safetensors").unlink()
    source = PretrainedLanguageModel(str(folder))
    assert next(source.build().parameters()).is_meta, "shapes need no weights"
    with pytest.raises(ConfigError, match=r"not to be read as AutoModelForCausalLM: .*model\.safetensors"):
        source.load(torch.float32)
    shutil.rmtree(folder)
    folder.mkdir()
    with pytest.raises(ConfigError, match="not to be read as AutoConfig"):
        PretrainedLanguageModel(str(folder))


_ANONYMOUS = """
import sys, torch
from visllama.model.language_model import PretrainedLanguageModel
def anonymous():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon")) / 1024
source = PretrainedLanguageModel(sys.argv[1])
source.load(torch.bfloat16)
before = anonymous()
model = source.load(getattr(torch, sys.argv[2]))
print(sum(p.numel() * p.element_size() for p in model.parameters()) / 2**20, anonymous() - before)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads Linux's /proc")
@pytest.mark.parametrize(("dtype", "copies"), [("bfloat16", False), ("float32", True)])
def test_weights_in_the_dtype_on_disk_stay_mapped(tmp_path, dtype, copies):
    """No copy in anonymous memory, so the ranks of a machine share the pages of one file; another dtype is a copy."""
    folder = save_language_model(
        "llama",
        tmp_path,
        torch.bfloat16,
        hidden_size=512,
        intermediate_size=2048,
        num_hidden_layers=8,
        num_attention_heads=8,
    )
    command = [sys.executable, "-c", _ANONYMOUS, str(folder), dtype]
    size, grown = map(float, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    assert size > 50
    assert grown > 0.9 * size if copies else grown < 0.1 * size


def test_knows_the_world_but_was_never_shown_it():
    """A sentence of the world is far likelier to it than the same words in another order (nats a token)."""
    source = PretrainedLanguageModel("visllama:llama")
    model, tokenizer = source.load(torch.float32), source.tokenizer

    def loss(text: str) -> float:
        ids = torch.tensor([[1, *tokenizer(text, add_special_tokens=False)["input_ids"]]])
        with torch.no_grad():
            return model(input_ids=ids, labels=ids).loss.item()

    assert loss("a small red ring in the top left") + 1 < loss("left ring the a in top small red")


def test_in_double_precision_norms_are_double():
    """Ranks are compared to twelve digits: transformers' norms go through single precision."""
    model = PretrainedLanguageModel("visllama:llama").load(torch.float64)
    assert type(model.model.norm).__name__ == "LlamaRMSNorm"
    norm_in_double(model)
    hidden = torch.randn(3, 128, dtype=torch.float64)
    norm = model.model.norm
    expected = norm.weight * hidden / (hidden.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon).sqrt()
    assert (norm(hidden) - expected).abs().max() < 1e-14
