"""A plan as a whole: figures worked out by hand, and published models on clusters of several sizes."""

from __future__ import annotations

import socket
from math import isfinite

import pytest

from tests.support.plans import CLUSTER, SIZES, lines
from tests.support.verbs import plan


def test_7b_on_64_gpus_by_hand(compose_config, monkeypatch):
    """Every figure is worked out here from the published sizes, and nothing is fetched for it."""
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("the network was asked"))
    found = plan(compose_config("plan", *CLUSTER, "stage.global_batch_size=3840", "samples=566747"))
    connector = 768 * 1024 + 1024 + 1024 * 10 * 4096 + 10 * 4096
    trained = connector + 2 * 4096
    token = 32 * (2 * 4 * (4096 + 1) + 4 * 2 * 4096 + 4 * 32 + 3 * 2 * 11008) + 4 * (4096 + 1)
    assert (found.tokens, found.job.num_samples, connector) == (27, 60, 42_771_456)
    by_hand = {
        "trained weights": 4 * trained,
        "frozen language model": 2 * 6_738_415_616,
        "frozen vision encoder": 2 * 303_966_208,
        "gradients": 4 * trained,
        "optimizer's state": 8 * trained + 4 * 5,
        "DDP's gradient buckets": 4 * trained,
        "activations: language model": 60 * 27 * token,
        "logits": 60 * 27 * 2 * 32000,
        "loss and its gradients": 60 * 27 * 12 * 32000,
    }
    assert {name: lines(found)[name] for name in by_hand} == by_hand
    assert lines(found, "longest")["logits"] == 60 * (1 + 12 + 256) * 2 * 32000
    counted = {part.name: part.count for part in found.flops}
    assert counted["frozen blocks"] == 4 * 32 * (4 * 4096**2 + 3 * 4096 * 11008) * 27
    assert counted["vision encoder"] == pytest.approx(162e9, rel=0.01)  # as is told of CLIP-L/14 at 224
    step = found.step
    assert step.reduced_bytes == pytest.approx(2 * 63 / 64 * 4 * trained)
    assert step.reduce_s == pytest.approx(step.reduced_bytes / 50e9)
    assert step.compute_s == pytest.approx(60 * sum(counted.values()) / (0.4 * 312e12))
    assert step.update_s == pytest.approx(7 * 4 * trained / 2039e9)
    assert found.num_steps == 3 * 566747 // 3840
    assert found.to_dict()["gpu_hours"] == pytest.approx(found.num_steps * step.seconds * 64 / 3600)


@pytest.mark.slow
@pytest.mark.parametrize("connector", ["mlp", "mlp_published"])
@pytest.mark.parametrize("nodes", [1, 8])
@pytest.mark.parametrize("batch_size", [pytest.param(64, marks=pytest.mark.proof), 3840])
@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
@pytest.mark.parametrize("model", ["llama_7b", "llama_13b", "llama_65b"])
def test_the_published_sizes_on_a100(compose_config, model, stage, batch_size, nodes, connector):
    cfg = compose_config(
        "plan", *CLUSTER[:2], "trainer.devices=8", f"trainer.num_nodes={nodes}", f"model/language_model={model}",
        f"stage={stage}", "data=coco", f"stage.global_batch_size={batch_size}", f"model/connector={connector}",
    )  # fmt: skip
    found = plan(cfg)
    told = found.to_dict()
    assert all(isfinite(value) and value >= 0 for value in (told["peak_bytes"], *told["step"].values()))
    assert found.longest.peak >= found.mean.peak > 2 * SIZES[f"language_model/{model}"]
    assert (found.job.num_samples * found.tokens < 1000) == any("tokens a GPU" in said for said in found.warnings)
    if model == "llama_65b":
        assert not found.fits and "trainer/strategy=fsdp" in found.switches
    elif not found.fits:  # a batch of many samples, each of which might be as long as is allowed
        assert batch_size == 3840 and found.switches[0].startswith("micro_batch_size=")


def test_the_published_batch_is_no_faster_on_eight_nodes(compose_config):
    found = plan(compose_config("plan", *CLUSTER, "model/connector=mlp_published", "stage.global_batch_size=64"))
    rates = [step.samples_per_second for step, _ in found.by_nodes]
    assert len(rates) == 4 and rates[3] < rates[0]
    assert "A step holds 27 tokens a GPU, under 1,000" in found.warnings[0]
