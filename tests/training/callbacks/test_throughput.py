"""What is logged of a run's speed: counts that are known, and rates that fit together."""

from __future__ import annotations

from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from tests.support.optimizer_config import OPTIM
from tests.support.scenes_data import data_of
from visllama.machine.cards import CARDS
from visllama.model.flops import flops
from visllama.model.shapes import read_shapes
from visllama.training.callbacks import throughput as timed
from visllama.training.callbacks.throughput import Throughput
from visllama.training.module import VisLlamaModule


class Logged(Callback):
    """What was logged at each step, and how long its samples are."""

    def __init__(self):
        self.figures, self.num_tokens, self.num_targets = [], 0, 0

    def on_train_batch_end(self, trainer, module, outputs, step, batch_idx):
        self.num_tokens += step["num_tokens"]
        self.num_targets += step["num_targets"]
        self.figures.append({name: float(value) for name, value in trainer.callback_metrics.items()})


def fit(model, throughput, max_steps=4, checkpoint=None, **more):
    logged = Logged()
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=1, max_steps=max_steps, logger=False, enable_checkpointing=False, log_every_n_steps=2,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[throughput, logged], num_sanity_val_steps=0,
        use_distributed_sampler=False, **({"limit_val_batches": 0} | more),
    )  # fmt: skip
    trainer.fit(VisLlamaModule(model, OPTIM, 6), data_of(model, num_steps=6), ckpt_path=checkpoint)
    return logged, trainer


def test_rates_are_of_the_steps_since_the_last_ones(make_model):
    model = make_model(dtype=torch.float32)
    shapes = read_shapes(model)
    throughput = Throughput(shapes)
    logged, _ = fit(model, throughput)
    last = logged.figures[3]
    assert throughput.samples == 4 * 12 and last["train/samples_total"] == 48
    assert throughput.targets == logged.num_targets == last["train/target_tokens_total"]
    # Figures are logged in fp32.
    assert last["train/step_s"] * last["train/samples_per_second"] == pytest.approx(12, rel=1e-5)
    assert 0 < last["train/data_wait_s"] < last["train/step_s"]
    assert throughput.samples_per_second == pytest.approx(48 / throughput.seconds)
    # A Python process with torch holds more than 100 MiB, and this machine has less than 4 TiB.
    assert 0.1 < last["train/peak_memory_gib"] < 4096
    assert "train/mfu" not in last, "the CPU's peak is not known"


def test_arithmetic_is_counted_on_samples_of_mean_length(make_model):
    """Over all steps at once, so that the mean is known."""
    model = make_model(dtype=torch.float32)
    shapes = read_shapes(model)
    logged, _ = fit(model, Throughput(shapes), max_steps=2)
    (figures,) = logged.figures[1:]
    expected = sum(part.count for part in flops(shapes, logged.num_tokens / 24, recomputes=False))
    a_second = figures["train/model_flops_per_second"]
    assert a_second / figures["train/samples_per_second"] == pytest.approx(expected, rel=1e-5)  # logged in fp32


def test_totals_go_on_where_a_run_does(make_model, tmp_path):
    model = make_model(dtype=torch.float32)
    _, trainer = fit(model, Throughput())
    trainer.save_checkpoint(tmp_path / "checkpoint")
    again = Throughput()
    logged, _ = fit(model, again, 6, tmp_path / "checkpoint")
    assert again.samples == 6 * 12 and logged.figures[-1]["train/samples_total"] == 72


class Slow(Callback):
    """Take a minute for each validation, by the clock that is looked at."""

    def __init__(self, clock):
        self.clock = clock

    def on_validation_end(self, *_):
        self.clock.now += 60


def test_validations_are_left_out(make_model, monkeypatch):
    clock = SimpleNamespace(now=0.0)

    def tick() -> float:
        clock.now += 1e-3
        return clock.now

    monkeypatch.setattr(timed, "time", SimpleNamespace(perf_counter=tick))
    throughput = Throughput()
    slow, logged = Slow(clock), Logged()
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=1, max_steps=4, logger=False, enable_checkpointing=False, log_every_n_steps=2,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[throughput, slow, logged], num_sanity_val_steps=0,
        use_distributed_sampler=False, val_check_interval=1,
    )  # fmt: skip
    model = make_model(dtype=torch.float32)
    trainer.fit(VisLlamaModule(model, OPTIM, 4), data_of(model, num_steps=4))
    assert clock.now > 4 * 60, "each step was validated"
    assert 0 < throughput.seconds < 1 and throughput.samples == 48


@pytest.mark.parametrize(
    ("device_name", "precision", "is_trained", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16-mixed", True, 2 * CARDS["h100_80g"].flops(2)),
        ("NVIDIA H100 80GB HBM3", "bf16-true", False, 2 * CARDS["h100_80g"].flops(2)),
        ("NVIDIA H100 80GB HBM3", "bf16-true", True, 2 * CARDS["h100_80g"].flops(4)),
        ("NVIDIA H100 80GB HBM3", "32-true", False, 2 * CARDS["h100_80g"].flops(4)),
        ("NVIDIA GeForce GT 710", "bf16-mixed", False, None),
    ],
)
def test_the_peak_is_of_all_cards_and_only_of_known_ones(monkeypatch, device_name, precision, is_trained, peak):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: device_name)
    throughput = Throughput(SimpleNamespace(is_trained=lambda part: is_trained), precision)
    assert throughput._read_peak(SimpleNamespace(world_size=2), torch.device("cuda")) == peak
    assert throughput._read_peak(SimpleNamespace(world_size=2), torch.device("cpu")) is None
