"""A step that is not finite changes nothing, to the bit; it is told with its samples, and too many end the run."""

from __future__ import annotations

import logging
import random
import traceback

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch.utils._python_dispatch import TorchDispatchMode

from tests.support.optimizer_config import OPTIM
from tests.support.tiny import data_of, tiny_parts
from visllama.data.scenes.source import ScenesSource
from visllama.model.weights import build_model
from visllama.parallel.strategy import SingleDevice
from visllama.training.callbacks.guard import NonFinite
from visllama.training.module import VisLlamaModule

STEPS = 40


class Poisoned(VisLlamaModule):
    """Makes the loss or a gradient of chosen steps NaN or infinite."""

    poison: dict

    def _backward(self, batch, num_targets, sources):
        loss = super()._backward(batch, num_targets, sources)
        what = self.poison.get(self.trainer.global_step)
        if what == "loss":
            return loss * float("nan")
        if what:
            trained = [p for p in self.model.parameters() if p.requires_grad and p.grad is not None]
            trained[self.trainer.global_step % len(trained)].grad.view(-1)[0] = float(what)
        return loss


class Untouched(Callback):
    """Compares weights and the optimizer's state before and after each poisoned step, bit by bit."""

    def __init__(self):
        self.checked, self.moved = [], 0

    @staticmethod
    def state(module):
        optimizer = module.optimizers().optimizer
        weights = [p.detach().clone() for p in module.model.parameters() if p.requires_grad]
        return weights + [torch.as_tensor(v).clone() for state in optimizer.state.values() for v in state.values()]

    def on_train_batch_start(self, trainer, module, *_):
        self.before = self.state(module)

    def on_train_batch_end(self, trainer, module, *_):
        after = self.state(module)
        same = len(after) == len(self.before) and all(
            torch.equal(a, b) for a, b in zip(after, self.before, strict=True)
        )
        if trainer.global_step - 1 in module.poison:
            assert same, trainer.global_step
            self.checked.append(trainer.global_step - 1)
        else:
            assert not same
            self.moved += 1


def fit(poison, fused=False, limit=5, steps=STEPS):
    torch.manual_seed(0)
    model = build_model(tiny_parts(), ("connector", "markers")).load_base_weights()
    source = ScenesSource("train", 40)
    module = Poisoned(model, OPTIM | {"lr": 1e-3, "fused": fused}, steps)
    module.poison, untouched, guard = poison, Untouched(), NonFinite(limit, 1e-3)
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, strategy=SingleDevice(torch.device("cpu")), max_epochs=1, max_steps=steps, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[untouched, guard], use_distributed_sampler=False, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(module, data_of(model, {"scenes": source}, source, 4, steps, 3))
    assert trainer.global_step == steps
    return module, untouched, guard


@pytest.mark.parametrize("fused", [False, True], ids=["read", "on-the-device"])
def test_thirty_poisoned_steps_leave_every_bit(fused, caplog):
    """`fused` is what CUDA has: the optimizer itself reads the flag, and nobody waits for it."""
    caplog.set_level(logging.WARNING, "visllama")
    dice = random.Random(0)
    chosen = [step for step in range(1, 2 * STEPS - 1) if step % 8]
    poison = {step: dice.choice(("loss", "nan", "inf", "-inf")) for step in sorted(dice.sample(chosen, 30))}
    _, untouched, guard = fit(poison, fused, limit=9, steps=2 * STEPS)
    assert untouched.checked == sorted(poison) and untouched.moved == 2 * STEPS - 30
    assert guard.num_skipped == 30 and guard.in_a_row == 0
    told = [record.getMessage() for record in caplog.records if "is not finite" in record.getMessage()]
    assert [int(text.split()[1].rstrip(":")) for text in told] == [step + 1 for step in sorted(poison)]
    assert all(text.count("scenes/train-") == 4 for text in told), "the keys of its samples"


def test_too_many_in_a_row_end_the_run_and_name_the_rate():
    with pytest.raises(
        FloatingPointError,
        match=r"max_skipped_steps=3: .*the last is 9 \(optim\.lr=0\.001: try a lower rate.*scenes/train-",
    ):
        fit({2: "nan", 3: "nan", 6: "nan", 7: "loss", 8: "inf", 9: "nan"}, limit=3)


def test_a_resumed_run_counts_on():
    guard = NonFinite(3, 0.1)
    guard.num_skipped, guard.in_a_row = 7, 2
    other = NonFinite(3, 0.1)
    other.load_state_dict(guard.state_dict())
    assert (other.num_skipped, other.in_a_row) == (7, 2)


class Reads(TorchDispatchMode):
    """Counts what would wait for a GPU: a number read out of a tensor."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._local_scalar_dense.default:
            frames = [frame.filename for frame in traceback.extract_stack()]
            if not any("transformers/masking_utils" in name for name in frames):  # it looks for packed samples
                self.found.append(frames)
        return func(*args, **(kwargs or {}))


def test_no_step_reads_a_number_from_the_device():
    """On CUDA each would wait for all that was queued. With the fused optimizer ours are none; transformers has one."""
    reads = []

    class Watching(Callback):
        def on_train_batch_start(self, trainer, *_):
            self.mode = Reads()
            self.mode.__enter__()

        def on_train_batch_end(self, trainer, *_):
            self.mode.__exit__(None, None, None)
            reads.append(len(self.mode.found))

    torch.manual_seed(0)
    model = build_model(tiny_parts(), ("connector", "markers")).load_base_weights()
    source = ScenesSource("train", 40)
    for fused, expected in ((True, False), (False, True)):
        reads.clear()
        trainer = pl.Trainer(
            accelerator="cpu", devices=1, strategy=SingleDevice(torch.device("cpu")), max_epochs=1, max_steps=6, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, callbacks=[Watching()], limit_val_batches=0, log_every_n_steps=100,
        )  # fmt: skip
        module = VisLlamaModule(model, OPTIM | {"lr": 1e-3, "fused": fused}, 6)
        trainer.fit(module, data_of(model, {"scenes": source}, source, 4, 6))
        assert len(reads) == 6 and all(bool(count) == expected for count in reads), (fused, reads)
