"""What is told of a run's rate and of how far it is, also where it goes on."""

from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from tests.support.optimizer_config import OPTIM
from tests.support.scenes_data import data_of
from visllama.training.callbacks.progress import ProgressBar, Throughput
from visllama.training.module import VisLlamaModule


class Rates(Callback):
    """What each step was taken with, beside what was logged at it."""

    def __init__(self):
        self.taken, self.logged = [], []

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.taken.append(optimizer.param_groups[0]["lr"])

    def on_train_batch_end(self, trainer, module, *_):
        self.logged.append(float(trainer.callback_metrics["lr/connector"]))


def test_the_logged_rate_is_that_of_the_step(make_model, tmp_path):
    """On resuming too: steps 4 to 6 of six."""

    def fit(max_steps: int, checkpoint=None) -> tuple[Rates, pl.Trainer]:
        rates, model = Rates(), make_model(dtype=torch.float32)
        trainer = pl.Trainer(
            accelerator="cpu", max_epochs=1, max_steps=max_steps, logger=False, enable_checkpointing=False, log_every_n_steps=1,
            enable_progress_bar=False, enable_model_summary=False, callbacks=[Throughput(), rates], limit_val_batches=0,
            use_distributed_sampler=False,
        )  # fmt: skip
        trainer.fit(VisLlamaModule(model, OPTIM, 6), data_of(model, num_steps=6), ckpt_path=checkpoint)
        return rates, trainer

    rising = [0.1 * step / 10 for step in range(1, 7)]
    first, trainer = fit(3)
    trainer.save_checkpoint(tmp_path / "checkpoint")
    second, _ = fit(6, tmp_path / "checkpoint")
    # Lightning logs in float32
    for rates, expected in ((first, rising[:3]), (second, rising[3:])):
        assert rates.taken == pytest.approx(expected) and rates.logged == pytest.approx(expected, rel=1e-6)


def test_the_bar_of_a_run_that_goes_on_has_its_total():
    """Lightning sets it where an epoch begins, and a run is one epoch, in the middle of which it goes on."""
    bar = ProgressBar()
    trainer = SimpleNamespace(
        global_step=7,
        num_training_batches=20,
        max_epochs=1,
        is_global_zero=True,
        fit_loop=SimpleNamespace(max_epochs=1),
    )
    bar._trainer = trainer
    bar.on_train_start(trainer, None)
    assert (bar.train_progress_bar.total, bar.train_progress_bar.initial) == (20, 7)
    bar.train_progress_bar.close()
