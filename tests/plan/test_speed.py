"""Arithmetic of a sample, and what the ranks send in a step."""

from __future__ import annotations

import pytest
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.support.plans import CLUSTER, lines
from tests.support.real_steps import ALL, STAGE_1, STAGE_2, batch, real_model
from tests.support.verbs import plan
from visllama.model.flops import flops
from visllama.model.shapes import read_shapes
from visllama.plan.model import build_shapes


@pytest.mark.parametrize(
    ("lora", "trainable", "recomputes"),
    [
        (None, STAGE_1, True),
        (ALL, STAGE_2, False),
        pytest.param(None, STAGE_1, False, marks=pytest.mark.slow),
        pytest.param(ALL, STAGE_2, True, marks=pytest.mark.slow),
    ],
)
def test_arithmetic_is_what_torch_counts(parts, lora, trainable, recomputes):
    made = parts(lora)
    model = real_model(made, trainable, "32-true", recomputes)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counted:
        model(**batch(model, 4, 48)).loss_sum.backward()
    planned = sum(part.count for part in flops(read_shapes(build_shapes(made, trainable)), 48, recomputes))
    # The first connector layer's input needs no gradient, the adapters' matrices are counted with their block.
    assert 4 * planned == pytest.approx(counted.get_total_flops(), rel=0.01)


def test_fsdp_gathers_and_scatters(compose_config):
    found = plan(compose_config("plan", *CLUSTER, "trainer/strategy=fsdp", "stage.global_batch_size=3840"))
    frozen, trained = 2 * (6_738_415_616 + 303_966_208), 4 * (42_771_456 + 8192)
    assert found.step.gathered_bytes == pytest.approx(2 * 63 / 64 * (frozen + trained))
    assert found.step.reduced_bytes == pytest.approx(63 / 64 * trained)
    assert lines(found)["FSDP's blocks, whole"] == 3 * 2 * (202_375_168 + 2 * 4096)
    assert lines(found)["FSDP's root, whole"] >= 2 * 2 * 32000 * 4096
