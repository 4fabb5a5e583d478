"""Memory of a rank: exact where it can be, near what torch counts in a real step where it cannot."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore

from tests.support.families import save_encoder, save_language_model
from tests.support.plans import job
from tests.support.real_steps import ADAMW, ALL, QV, STAGE_1, STAGE_2, batch, real_model, take_step
from tests.support.tiny import TINY, tiny_parts
from visllama.model.shapes import read_shapes
from visllama.model.sharding import shard
from visllama.model.weights import build_model
from visllama.plan.job import Job, Precision
from visllama.plan.lines import CONNECTOR, ENCODE
from visllama.plan.memory import memory
from visllama.plan.model import build_shapes
from visllama.training.optim import build_optimizer


@pytest.mark.slow
def test_gradients_stay_while_micro_batches_go(check_against_tracker, parts):
    check_against_tracker(parts(), STAGE_1, micro_batches=2)


@pytest.mark.slow
def test_a_large_connector_peaks_in_its_own_backward_pass(check_against_tracker, parts):
    wide = parts(None, "MLPConnector", num_image_tokens=10, hidden_dim=8000)
    check_against_tracker(wide, STAGE_1, "32-true", moment=CONNECTOR)


@pytest.mark.slow
def test_a_small_language_model_peaks_in_the_vision_encoder(check_against_tracker, tmp_path, monkeypatch):
    monkeypatch.setattr("tests.support.families.SIDE_PX", 160)
    monkeypatch.setattr("tests.support.families._VISION", {
        "hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 8, "num_attention_heads": 4,
        "image_size": 160, "patch_size": 16,
    })  # fmt: skip
    vision = {"kind": "CLIPVisionEncoder", "arguments": {"path": str(save_encoder("clip", tmp_path / "clip"))}}
    small = {"path": str(save_language_model("llama", tmp_path / "llama"))}
    connector = {"kind": "MLPConnector", "arguments": {"num_image_tokens": 4, "hidden_dim": 16}}
    language = {"kind": "PretrainedLanguageModel", "arguments": small}
    made = {"vision_encoder": vision, "language_model": language, "connector": connector}
    check_against_tracker(made, STAGE_1, moment=ENCODE)


@pytest.mark.parametrize(
    "precision", ["bf16-mixed", *(pytest.param(name, marks=pytest.mark.slow) for name in ("32-true", "bf16-true"))]
)
@pytest.mark.parametrize(
    ("lora", "trainable"), [(None, STAGE_1), (QV, STAGE_2), (ALL, STAGE_2)], ids=["-", "qv", "all"]
)
@pytest.mark.parametrize("size", ["shipped", "larger"])
def test_weights_gradients_and_state_are_exact(parts, size, lora, trainable, precision):
    made = parts(lora) if size == "larger" else tiny_parts() | ({"lora": lora} if lora else {})
    model = real_model(made, trainable, precision)
    optimizer = build_optimizer(model, ADAMW)
    with torch.autocast("cpu", torch.bfloat16, precision.endswith("-mixed"), cache_enabled=False):
        model(**batch(model, 2, 20)).loss_sum.backward()
    optimizer.step()
    trained = [p for p in model.parameters() if p.requires_grad]
    real = {
        "trained weights": sum(p.nbytes for p in trained),
        "gradients": sum(p.grad.nbytes for p in trained),
        "optimizer's state": sum(t.nbytes for p in trained for t in optimizer.state[p].values()),
    }
    for part in ("language_model", "vision_encoder"):
        frozen = [p for n, p in model.named_parameters() if n.startswith(part) and not p.requires_grad]
        real[f"frozen {part.replace('_', ' ')}"] = sum(p.nbytes for p in frozen)
    planned = {
        line.name: line.num_bytes
        for line in memory(read_shapes(build_shapes(made, trainable)), job(precision), 20).lines
    }
    assert {name: planned[name] for name in real} == real


@pytest.mark.parametrize("ranks", [4, 6])
def test_shards_are_exact(ranks):
    """Six ranks divide neither two markers nor most rows: FSDP pads."""
    made = tiny_parts() | {"lora": QV}
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=ranks)
    try:
        model = build_model(made, STAGE_2).load_base_weights(torch.bfloat16)
        shard(model, init_device_mesh("cpu", (ranks,)), torch.bfloat16)
        trained = sum(p.to_local().nbytes for p in model.parameters() if p.requires_grad)
        frozen = sum(p.to_local().nbytes for p in model.parameters() if not p.requires_grad)
    finally:
        dist.destroy_process_group()
    shapes = read_shapes(build_shapes(made, STAGE_2))
    lines = {line.name: line.num_bytes for line in memory(shapes, job(strategy="fsdp", ranks=ranks), 27).lines}
    assert lines["trained weights"] == lines["gradients"] == trained
    assert lines["frozen language model"] + lines["frozen vision encoder"] == frozen


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("recomputes", [False, True])
@pytest.mark.parametrize(("lora", "trainable"), [(None, STAGE_1), (QV, STAGE_2)], ids=["pretrain", "finetune"])
def test_the_peak_on_a_gpu(tmp_path, lora, trainable, recomputes):
    sizes = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 8, "num_attention_heads": 16}
    language = save_language_model("llama", tmp_path / "l", **sizes, num_key_value_heads=16, vocab_size=8000)
    made = TINY | {
        "language_model": {"kind": "PretrainedLanguageModel", "arguments": {"path": str(language)}},
        "connector": {"kind": "MLPConnector", "arguments": {"num_image_tokens": 10, "hidden_dim": 1024}},
    } | ({"lora": lora} if lora else {})  # fmt: skip
    model = real_model(made, trainable, "bf16-mixed", recomputes).cuda()
    optimizer = build_optimizer(model, ADAMW)
    batches = [{name: tensor.cuda() for name, tensor in batch(model, 64, 128).items()}]
    take_step(model, optimizer, batches, "bf16-mixed", device="cuda")
    torch.cuda.reset_peak_memory_stats()
    take_step(model, optimizer, batches, "bf16-mixed", device="cuda")
    own = Job(1, 1, 64, 64, "one", Precision.named("bf16-mixed"), recomputes, (8.0, 4), True)
    planned = memory(read_shapes(build_shapes(made, trainable)), own, 128).counted
    assert planned == pytest.approx(torch.cuda.max_memory_allocated(), rel=0.1)
