import sys
from collections.abc import Sequence

import pytest
import torch
from torch import nn

from tests.support.optimizer_config import OPTIM
from visllama.training.optim import build_optimizer, build_schedule, parameter_groups


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.connector, self.language_model = nn.Linear(3, 2), nn.Linear(2, 2).requires_grad_(False)
        self.markers = nn.Parameter(torch.ones(2, 2))


def test_only_trained_tensors_and_who_decays():
    groups = {g["name"]: g for g in parameter_groups(Model(), 0.1, {"markers": 0.01}, 0.2)}
    assert set(groups) == {"connector", "connector, no decay", "markers, no decay"}
    assert groups["connector"]["weight_decay"] == 0.2 and groups["connector"]["lr"] == 0.1
    assert groups["connector, no decay"]["weight_decay"] == groups["markers, no decay"]["weight_decay"] == 0
    assert groups["markers, no decay"]["lr"] == 0.01
    assert sum(p.numel() for g in groups.values() for p in g["params"]) == 3 * 2 + 2 + 4


def test_a_connector_may_learn_at_a_part_of_the_rate():
    model = Model()
    model.connector.lr_scale = 0.25
    rates = {g["name"]: g["lr"] for g in parameter_groups(model, 0.1, {}, 0.2)}
    assert rates == {"connector": 0.025, "connector, no decay": 0.025, "markers, no decay": 0.1}
    by_part = {g["name"]: g["lr"] for g in parameter_groups(model, 0.1, {"connector": 0.3}, 0.2)}
    assert by_part["connector"] == 0.3, "a rate for the part is taken as it is"


def test_optimizer_is_what_the_config_names():
    optimizer = build_optimizer(Model(), OPTIM)
    assert isinstance(optimizer, torch.optim.AdamW) and tuple(optimizer.defaults["betas"]) == (0.9, 0.95)
    assert isinstance(build_optimizer(Model(), OPTIM | {"_target_": "torch.optim.Adam"}), torch.optim.Adam)


def rates(
    schedule: str | dict, num_steps: int = 100, warmup_fraction: float = 0.1, plugins: Sequence[str] = ()
) -> list[float]:
    optimizer = build_optimizer(Model(), OPTIM)
    config = OPTIM | {"schedule": schedule, "warmup_fraction": warmup_fraction}
    scheduler = build_schedule(optimizer, config, num_steps, plugins)
    seen = []
    for _ in range(num_steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


def test_schedules():
    """Ten steps of warm-up to the full rate, then down (half-way at the middle) or level."""
    for schedule in ("cosine", "linear", "constant"):
        seen = rates(schedule)
        assert seen[0] == pytest.approx(0.01) and seen[9] == pytest.approx(0.1) == max(seen)
    assert rates("linear")[55] == pytest.approx(0.05) == pytest.approx(rates("cosine")[55])
    assert rates("cosine")[99] < 1e-4 and rates("linear")[99] == pytest.approx(0.1 / 90)
    assert rates("constant")[99] == pytest.approx(0.1)


@pytest.mark.parametrize("num_steps", [1, 4, 10, 50, 199])
def test_a_short_run_begins_as_gently_as_a_longer_one(num_steps):
    """Five percent of it would be none to nine steps."""
    seen = rates("cosine", num_steps, warmup_fraction=0.05)
    rising = [0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08, 0.09, 0.1]
    assert seen[:10] == pytest.approx(rising[:num_steps])
    assert max(seen) == pytest.approx(rising[min(num_steps, 10) - 1])


def test_the_default_run_warms_up_as_before():
    """5 % of its 250 steps are more than the floor."""
    seen = rates("cosine", 250, warmup_fraction=0.05)
    assert seen[:12] == pytest.approx([0.1 * step / 12 for step in range(1, 13)]) and seen[12] == pytest.approx(0.1)
    assert seen[13] < 0.1


@pytest.mark.parametrize("num_steps", [1, 4, 50])
def test_no_warm_up_is_none(num_steps):
    """The recipes that publish a constant rate."""
    assert rates("constant", num_steps, warmup_fraction=0.0) == pytest.approx([0.1] * num_steps)


def test_a_schedule_of_ones_own_sees_how_much_is_done_behind_the_warm_up(tmp_path, monkeypatch):
    (tmp_path / "own_schedule.py").write_text(
        "class Half:\n"
        "    def __init__(self, at):\n"
        "        self.at = at\n\n"
        "    def __call__(self, progress):\n"
        "        return 1.0 if progress < self.at else 0.25\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        seen = rates({"_target_": "own_schedule.Half", "at": 0.5}, plugins=["own_schedule"])
    finally:
        sys.modules.pop("own_schedule", None)
    assert seen[:10] == pytest.approx([0.01 * step for step in range(1, 11)])
    assert seen[10:55] == pytest.approx([0.1] * 45) and seen[55:] == pytest.approx([0.025] * 45)
