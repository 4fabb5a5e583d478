"""One step is one update, whatever the micro-batches: in fp64, within a few rounding errors."""

from __future__ import annotations

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from tests.support.optimizer_config import OPTIM
from tests.support.scenes_data import data_of
from tests.support.tiny import relative_difference, tiny_parts
from visllama.model.weights import trained_tensors
from visllama.training.module import VisLlamaModule

EXACT = 1e-12
STEPS = 8


class Losses(Callback):
    def __init__(self):
        self.values = []

    def on_train_batch_end(self, trainer, module, *_):
        self.values.append(float(trainer.callback_metrics["train/loss"]))


def fit(model, micro_batch_size=64, **optim):
    module = VisLlamaModule(model, OPTIM | {"lr": 4e-3} | optim, STEPS)
    losses = Losses()
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=1, max_steps=STEPS, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[losses], log_every_n_steps=1, precision="64-true", use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(module, data_of(model, micro_batch_size))
    assert trainer.global_step == STEPS
    return losses.values, trained_tensors(model)


@pytest.fixture(scope="module")
def reference():
    from visllama.model.weights import build_model

    def make():
        torch.manual_seed(0)
        return build_model(tiny_parts(), ("connector", "markers")).load_base_weights(torch.float64).double()

    return make, fit(make())


@pytest.mark.parametrize("micro_batch_size", [1, 5, 12])
def test_accumulation_changes_neither_loss_nor_update(reference, micro_batch_size):
    make, (losses, tensors) = reference
    found_losses, found = fit(make(), micro_batch_size)
    assert max(abs(a - b) / b for a, b in zip(found_losses, losses, strict=True)) < EXACT
    # 8 steps of AdamW: its division by sqrt(v) lets rounding grow a little.
    assert max(relative_difference(found[name], tensors[name]) for name in tensors) < EXACT
    assert losses[-1] < losses[0]


def test_clipping_is_of_all_gradients_together(reference):
    make, (_, unclipped) = reference
    _, tight = fit(make(), clip_norm=1e-3)
    _, tight_accumulated = fit(make(), 5, clip_norm=1e-3)
    assert max(relative_difference(tight_accumulated[name], tight[name]) for name in tight) < EXACT
    assert relative_difference(tight["markers"], unclipped["markers"]) > 1e-6


def test_same_seed_same_run(reference):
    make, (losses, tensors) = reference
    again_losses, again = fit(make())
    assert again_losses == losses and all(torch.equal(again[name], tensors[name]) for name in tensors)


def test_a_step_with_nothing_to_learn_is_an_error(reference):
    make, _ = reference
    model = make()
    data = data_of(model)
    data.makers["scenes"].max_text_tokens = 0
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        precision="64-true",
        num_sanity_val_steps=0,
    )
    with pytest.raises(ValueError, match="none of its samples has a supervised token"):
        trainer.fit(VisLlamaModule(model, OPTIM, 1), data)


def test_validation_loss_is_of_all_tokens_once(reference):
    """Over 5 records in one batch, in micro-batches of 2: the mean over tokens, not over batches."""
    make, _ = reference
    model = make()
    data = data_of(model, micro_batch_size=2)
    samples = [data.val[i] for i in range(5)]
    with torch.no_grad():
        expected = sum(model(**data.collator.training_batch([s])).loss_sum for s in samples) / sum(
            s.num_targets for s in samples
        )
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, precision="64-true"
    )
    measured = trainer.validate(VisLlamaModule(model, OPTIM, 1), data, verbose=False)[0]["val/loss"]
    assert abs(measured - float(expected)) < 1e-6  # Lightning logs in fp32
