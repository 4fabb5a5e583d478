"""LoRA: begins as nothing, merges to the same, is fp32 and the only trained part of LLaMA; what is refused."""

from __future__ import annotations

import pytest
import torch

from tests.support.tiny import maker_of, tiny_parts
from visllama.data.scenes.source import ScenesSource
from visllama.errors import ConfigError
from visllama.model.lora import adapters, attach_lora, is_adapter
from visllama.model.visllama import part_of
from visllama.model.weights import build_model, frozen_hashes, hash_tensors, load_weights, save_weights, trained_tensors

QV = {"r": 8, "lora_alpha": 16, "lora_dropout": 0.05, "target_modules": ["q_proj", "v_proj"]}
ALL = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}
STAGE_2 = ("connector", "markers", "adapter")
CHOICES = {"qv": QV, "all_linear": ALL, "dora": ALL | {"use_dora": True}, "rslora": QV | {"use_rslora": True}}


def make(lora=None, trainable=STAGE_2, dtype=torch.float32):
    torch.manual_seed(0)
    parts = tiny_parts() | ({} if lora is None else {"lora": lora})
    model = build_model(parts, trainable if lora else ("connector", "markers")).load_base_weights(dtype)
    model.connector.to(torch.promote_types(dtype, torch.float32))
    return model


def batch_of(model):
    from tests.support.tiny import collator_of

    source = ScenesSource("train", 4, 1)
    return collator_of(model).training_batch([maker_of(model)(source[i]) for i in range(4)])


def loud(model):
    """Let the adapter say something: fresh, its second matrix is zero."""
    torch.manual_seed(3)
    for name, parameter in model.named_parameters():
        if is_adapter(name):
            parameter.data += 0.05 * torch.randn_like(parameter)
    return model


@pytest.mark.parametrize("lora", CHOICES.values(), ids=CHOICES)
def test_identity_at_first_and_merged_equals_unmerged(lora):
    plain, model = make().eval(), make(lora).eval()
    batch = batch_of(plain)
    with torch.no_grad():
        expected = plain(**batch).logits
        # DoRA divides by norms that it multiplies by again.
        assert (model(**batch).logits - expected).abs().max() < (1e-4 if "use_dora" in lora else 1e-6)
        unmerged = loud(model)(**batch).logits
        assert (unmerged - expected).abs().max() > 0.1
        merged = model.merge_adapter()(**batch).logits
    scale = unmerged.abs().max()
    print(f"\nmerged: {(merged - unmerged).abs().max():.1e}, logits up to {scale:.0f}")
    assert (merged - unmerged).abs().max() < 1e-5 * max(1, scale) and not list(adapters(model.language_model))


def test_merged_equals_unmerged_exactly_in_double_precision():
    model = loud(make(ALL, dtype=torch.float64)).double().eval()
    batch = batch_of(model)
    with torch.no_grad():
        unmerged = model(**batch).logits
        assert (model.merge_adapter()(**batch).logits - unmerged).abs().max() < 1e-11


def test_trained_are_connector_markers_adapters_and_nothing_else():
    model = make(QV)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {part_of(name) for name in trained} == set(STAGE_2)
    assert trained == set(trained_tensors(model))
    adapted = [name for name in trained if is_adapter(name)]
    assert len(adapted) == 4 * 2 * 2, "four layers, q and v, A and B"
    assert all(".q_proj." in name or ".v_proj." in name for name in adapted)
    assert not any(is_adapter(name) for name, _ in model.vision_encoder.named_parameters())


def test_the_base_keeps_its_name_and_hash():
    model, plain = loud(make(QV)), make()
    assert frozen_hashes(model)["language_model"] == frozen_hashes(plain)["language_model"]
    other = hash_tensors(plain.language_model.named_parameters())
    assert frozen_hashes(model)["language_model"] == other


def test_dropout_is_the_adapters_alone():
    model = loud(make(QV | {"lora_dropout": 0.5}))
    batch = batch_of(model)
    with torch.no_grad():
        model.train()
        assert not model.language_model.training and (model(**batch).logits - model(**batch).logits).abs().max() > 0
        model.eval()
        assert torch.equal(model(**batch).logits, model(**batch).logits)


def test_adapters_of_a_half_precision_model_are_single():
    model = make(QV, dtype=torch.bfloat16)
    assert {p.dtype for n, p in model.language_model.named_parameters() if is_adapter(n)} == {torch.float32}
    assert {p.dtype for n, p in model.language_model.named_parameters() if not is_adapter(n)} == {torch.bfloat16}


def test_weights_hold_the_adapter_and_give_the_same_model(tmp_path):
    from tests.support.tiny import TEXT

    model = loud(make(ALL)).eval()
    save_weights(model, tiny_parts() | {"lora": ALL}, TEXT, tmp_path)
    loaded, description = load_weights(tmp_path)
    assert description["parts"]["lora"] == ALL and description["trained"] == list(STAGE_2)
    batch = batch_of(model)
    with torch.no_grad():
        assert torch.equal(loaded.eval()(**batch).logits, model(**batch).logits)


@pytest.mark.parametrize(
    ("part", "connector"), [("language_model", "mlp"), ("vision_encoder", "mlp"), ("vision_encoder", "resampler")]
)
def test_full_tuning_trains_a_base_model_in_single_precision(part, connector, tmp_path):
    """Of the encoder what the features rest on: the penultimate layer's patches leave out the last one."""
    from tests.support.tiny import TEXT

    torch.manual_seed(0)
    model = build_model(tiny_parts(connector), ("connector", part)).load_base_weights(torch.bfloat16)
    own = dict(getattr(model, part).named_parameters())
    assert {p.dtype for p in own.values()} == {torch.float32}
    frozen = "vision_encoder" if part == "language_model" else "language_model"
    batch = batch_of(model)
    if part == "vision_encoder":
        model.language_model.float()
    else:
        model.vision_encoder.float()
    model(**batch).loss_sum.backward()
    learning = [p for p in model.parameters() if p.requires_grad]
    assert all(p.grad is not None for p in learning), "else ranks would wait for it"
    num_learning = sum(p.requires_grad for p in own.values())
    assert num_learning == len(own) if connector == "mlp" else len(own) / 2 < num_learning < len(own)
    save_weights(model, tiny_parts(connector), TEXT, tmp_path)
    loaded, description = load_weights(tmp_path)
    assert list(description["base_sha256"]) == [frozen]
    assert all(torch.equal(p, own[n]) for n, p in getattr(loaded, part).named_parameters())


@pytest.mark.parametrize(
    ("lora", "says"),
    [
        (QV | {"target_modules": ["q_proj", "qkv"]}, r"target_modules=\['qkv'\]: the language model has no such layer: it has down_proj"),
        (QV | {"target_modules": "nothing.*"}, "target_modules=nothing.*: the language model has no such layer"),
        (QV | {"target_modules": None}, "target_modules=None: give a list"),
        (QV | {"init_lora_weights": "pissa"}, "init_lora_weights=pissa: true or gaussian"),
        (QV | {"init_lora_weights": False}, "init_lora_weights=False: true or gaussian"),
        (QV | {"modules_to_save": ["lm_head"]}, "modules_to_save=.*: LoRA takes r, lora_alpha"),
        (QV | {"megatron_core": "os"}, "megatron_core=os: LoRA takes"),
        (QV | {"r": "many"}, "model.lora.r=many: must be a whole number"),
        (QV | {"r": 0}, "r=0: must be"),
        (QV | {"rank_pattern": {"q_proj": 0}}, "rank_pattern=.*: must be numbers more than 0"),
        (QV | {"rank_pattern": {"(q|v)+": 4}}, "rank_pattern=.*: must be numbers more than 0 by the names"),
        (QV | {"target_modules": "(*"}, "model.lora: "),
        (QV | {"target_modules": [1]}, "target_modules=.*: give a list"),
        (QV | {"target_modules": ["embed_tokens"]}, "embed_tokens holds the embeddings"),
        (QV | {"lora_bias": True}, "lora_bias=True: LoRA takes"),
        (QV | {"lora_dropout": 1.5}, r"lora_dropout=1.5: must be in"),
    ],
)  # fmt: skip
def test_what_is_no_adapter_is_refused(lora, says):
    with pytest.raises(ConfigError, match=says):
        make(lora)


def test_attached_on_the_meta_device_it_is_there_too():
    model = build_model(tiny_parts() | {"lora": ALL}, STAGE_2)
    own = [p for n, p in model.language_model.named_parameters() if is_adapter(n)]
    assert own and all(p.is_meta for p in own)


def test_all_linear_means_all_but_the_output():
    model = make(ALL)
    found = {name.rpartition(".")[2] for name, _ in adapters(model.language_model)}
    assert found == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def test_attaching_gives_the_model_back():
    model = make().language_model
    assert attach_lora(model, QV) is model


def test_a_tied_output_layer_is_refused():
    """Merged, its adapter would change the embeddings too."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    for tied in (False, True):
        model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, tie_word_embeddings=tied))
        lora = QV | {"target_modules": ["q_proj", "lm_head"]}
        if tied:
            with pytest.raises(ConfigError, match="lm_head holds the embeddings"):
                attach_lora(model, lora)
        else:
            attach_lora(model, lora)


def test_weights_name_what_a_pattern_has_found(tmp_path):
    from tests.support.tiny import TEXT

    lora = {"r": 2, "lora_alpha": 4, "target_modules": r".*\.[01]\..*(q|v)_proj", "exclude_modules": ".*1.*v_proj"}
    save_weights(make(lora), tiny_parts() | {"lora": lora}, TEXT, tmp_path)
    loaded, description = load_weights(tmp_path)
    names = [f"model.layers.{name}_proj" for name in ("0.self_attn.q", "0.self_attn.v", "1.self_attn.q")]
    assert description["parts"]["lora"] == {"r": 2, "lora_alpha": 4, "target_modules": names}
    assert [name for name, _ in adapters(loaded.language_model)] == names
