"""What is told of a run's rate and of how far it is, also where it goes on."""

import re
from io import StringIO
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import rich
import torch
from lightning.pytorch.callbacks import Callback

from tests.support.optimizer_config import OPTIM
from tests.support.scenes_data import data_of
from visllama.console import say
from visllama.training.callbacks.progress import StepProgress
from visllama.training.callbacks.throughput import Throughput
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


def become_terminal(monkeypatch) -> StringIO:
    """Let stdout be a terminal of 60 columns from here on, and return what it is sent."""
    screen = StringIO()
    screen.isatty = lambda: True
    monkeypatch.setattr("sys.stdout", screen)
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(rich, "_console", None)  # made anew for this terminal, and again for the next test
    return screen


def trainer_at(step: int, max_steps: int = 20) -> SimpleNamespace:
    figures = {"train/loss": 1.25, "train/samples_per_second": 150.4, "lr/connector": 4e-3, "lr/markers": 1e-3}
    return SimpleNamespace(
        global_step=step, max_steps=max_steps, log_every_n_steps=5, num_val_batches=[3], callback_metrics=figures
    )


def train(first_step: int, last_step: int) -> StepProgress:
    progress = StepProgress()
    progress.on_train_start(trainer_at(first_step), None)
    for step in range(first_step + 1, last_step + 1):
        progress.on_train_batch_end(trainer_at(step), None)
    return progress


def test_off_a_terminal_lines_are_said(capsys):
    train(0, 12).teardown()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1, "the next one only after ten seconds"
    assert lines[0].startswith("step 5 of 20: loss 1.250  lr 4.00e-03  150 samples/s  0:00:0")
    assert lines[0].endswith(" left")


def test_a_terminal_shows_one_bar_that_fits_it_and_the_log_has_the_lines(monkeypatch):
    terminal = become_terminal(monkeypatch)
    monkeypatch.setattr("visllama.training.callbacks.progress._DRAW_EVERY_S", 0.0)
    noted = []
    monkeypatch.setattr("visllama.training.callbacks.progress.log", noted.append)
    progress = train(7, 12)  # of a run that goes on at its eighth step
    progress._draw()
    say("step 12, after 3 s: what is said stands above the bar")
    progress.teardown()

    shown = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line) for line in re.split(r"[\r\n]+", terminal.getvalue())]
    bars = [line.rstrip() for line in shown if line.startswith("train")]
    assert bars and all(len(bar) <= 60 for bar in bars), bars
    assert re.search(r"12/20 +loss 1\.250  150 samples/s  0:00:0\d left$", bars[-1])
    assert "step 12, after 3 s: what is said stands above the bar" in shown, "on a line of its own"
    assert [line.split(":")[0] for line in noted] == ["step 10 of 20"]


def test_a_validation_has_a_bar_of_its_own_while_it_lasts(monkeypatch):
    terminal = become_terminal(monkeypatch)
    monkeypatch.setattr("visllama.training.callbacks.progress._DRAW_EVERY_S", 0.0)
    progress = train(0, 5)
    progress.on_validation_start(trainer_at(5), None)
    for _ in range(2):
        progress.on_validation_batch_end(trainer_at(5), None)
    progress._draw()
    assert re.search(r"validate .*2/3", terminal.getvalue())
    progress.on_validation_end(trainer_at(5), None)
    before = len(terminal.getvalue())
    progress._draw()
    assert "validate" not in terminal.getvalue()[before:]
    progress.on_exception()
    assert terminal.getvalue().rfind("\x1b[?25h") > terminal.getvalue().rfind("\x1b[?25l"), "the cursor is there"
    assert terminal.getvalue().rstrip().endswith("\x1b[2K"), "nothing of the bars stays behind"
