"""The weights of a run are those of its best validation, over a resume too."""

from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from tests.support.optimizer_config import OPTIM
from tests.support.scenes_data import data_of
from visllama.errors import ConfigError
from visllama.model.weights import trained_tensors
from visllama.training.callbacks.keep_best import KeepBest
from visllama.training.module import VisLlamaModule

CONFIG = OPTIM | {"lr": 0.02, "schedule": "constant", "warmup_fraction": 0}
NUM_STEPS = 8


class Spoils(Callback):
    """Make the model worse near its end."""

    def on_train_batch_end(self, trainer, module, *_):
        if trainer.global_step >= NUM_STEPS - 1:
            module.model.markers.data = 5 * torch.randn_like(module.model.markers)


class Validations(Callback):
    """Note the loss and the weights of each validation."""

    def __init__(self):
        self.losses = []
        self.weights = []

    def on_validation_end(self, trainer, module):
        self.losses.append(float(trainer.callback_metrics["val/loss"]))
        self.weights.append({name: tensor.clone() for name, tensor in trained_tensors(module.model).items()})


def trainer_of(*callbacks: Callback, max_steps: int = NUM_STEPS, **more) -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu", max_epochs=1, max_steps=max_steps, num_sanity_val_steps=0, logger=False, enable_checkpointing=False,
        enable_model_summary=False, enable_progress_bar=False, callbacks=list(callbacks), precision="64-true",
        **{"val_check_interval": 1, **more},
    )  # fmt: skip


def fit(model, *callbacks: Callback, max_steps: int = NUM_STEPS, checkpoint: Path | None = None, **more) -> pl.Trainer:
    trainer = trainer_of(*callbacks, max_steps=max_steps, **more)
    module = VisLlamaModule(model, CONFIG, NUM_STEPS)
    trainer.fit(module, data_of(model, num_steps=NUM_STEPS), ckpt_path=checkpoint)
    return trainer


@pytest.mark.parametrize("mode", ["min", "max"])
def test_the_weights_are_those_of_the_best_validation(make_model, mode):
    model, seen, keep = make_model(), Validations(), KeepBest(mode=mode)
    fit(model, Spoils(), seen, keep)
    assert len(seen.losses) == NUM_STEPS and len(set(seen.losses)) == NUM_STEPS
    best = (min if mode == "min" else max)(seen.losses)
    at = seen.losses.index(best)
    assert at < NUM_STEPS - 1, "the last is not the best: else this would show nothing"
    assert (keep.best, keep.step) == (best, at + 1)
    for name, tensor in trained_tensors(model).items():
        assert torch.equal(tensor, seen.weights[at][name]), name
        assert tensor.dtype == seen.weights[at][name].dtype


def test_a_resumed_run_knows_the_best_of_before(make_model, tmp_path):
    whole, seen = KeepBest(mode="max"), Validations()
    model = make_model()
    fit(model, seen, whole)
    assert whole.step < 4, "it lies before the run is stopped"

    first = fit(make_model(), KeepBest(mode="max"), max_steps=4)
    first.save_checkpoint(tmp_path / "checkpoint")
    resumed, again = KeepBest(mode="max"), make_model()
    fit(again, resumed, checkpoint=tmp_path / "checkpoint")
    assert (resumed.best, resumed.step) == (whole.best, whole.step)
    expected = trained_tensors(model)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in trained_tensors(again).items())


def test_what_cannot_be_kept_is_refused(make_model):
    with pytest.raises(ConfigError, match=r"callbacks\.keep_best\.mode=least: choose min or max"):
        KeepBest(mode="least")
    with pytest.raises(ConfigError, match=r"trainer\.val_check_interval=null validates nothing"):
        fit(make_model(), KeepBest(), limit_val_batches=0)
    with pytest.raises(ConfigError, match=r"monitor=val/los: there is no such figure; there are val/loss"):
        fit(make_model(), KeepBest("val/los"))
