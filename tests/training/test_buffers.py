"""The buffers of trained parts: as before a step that was not taken, and the first rank's on all."""

from __future__ import annotations

import os
import subprocess
import sys

import torch

from tests.support.commands import ROOT
from tests.support.tiny import tiny_parts
from visllama.model.weights import build_model
from visllama.training.buffers import copy_buffers, settle_buffers

YES, NO = torch.tensor(True), torch.tensor(False)


def make(trainable=("connector", "markers")):
    connector = {"kind": "Normed", "arguments": {"num_image_tokens": 4}}
    return build_model(tiny_parts() | {"connector": connector}, trainable, plugins=["tests.support.stateful_parts"])


def test_a_step_that_is_not_taken_leaves_them_as_they_were():
    model = make()
    before = copy_buffers(model)
    assert set(before) == {f"connector.norm.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")}
    model.connector(torch.full((2, model.vision_encoder.pooled_dim), float("nan")))
    assert model.connector.norm.running_mean.isnan().all()
    settle_buffers(model, before, NO, 1)
    assert all(torch.equal(buffer, before[name]) for name, buffer in copy_buffers(model).items())

    model.connector(torch.randn(2, model.vision_encoder.pooled_dim))
    settle_buffers(model, before, YES, 1)
    assert model.connector.norm.num_batches_tracked == 1


def test_a_connector_that_does_not_learn_has_none():
    assert copy_buffers(make(("markers",))) == {}


SCRIPT = """
import os
import torch
import torch.distributed as dist
from tests.training.test_buffers import YES, make
from visllama.training.buffers import copy_buffers, settle_buffers

dist.init_process_group("gloo")
rank, model = dist.get_rank(), make()
before = copy_buffers(model)
for _ in range(1 + rank):
    model.connector(torch.full((2, model.vision_encoder.pooled_dim), float(rank)) + torch.arange(2.0)[:, None])
own = copy_buffers(model)
settle_buffers(model, before, YES, 2)
found = copy_buffers(model)
if rank == 0:
    assert all(torch.equal(found[name], own[name]) for name in own)
everywhere = [None, None]
dist.all_gather_object(everywhere, found)
assert all(torch.equal(everywhere[0][name], everywhere[1][name]) for name in found)
assert found["connector.norm.num_batches_tracked"] == 1 and found["connector.norm.running_mean"].unique().numel() == 1
dist.destroy_process_group()
"""


def test_all_ranks_take_the_first_ones(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    ended = subprocess.run(
        [*launch, str(tmp_path / "script.py")], capture_output=True, text=True, timeout=200, cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-3000:]
