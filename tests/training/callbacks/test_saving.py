"""Saved on a schedule, at the end, and when told; the flag of any rank is all ranks'."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from visllama.checkpoint.folder import name_of
from visllama.machine import preemption
from visllama.training.callbacks.saving import Saving


@pytest.fixture
def trainer(tmp_path, monkeypatch):
    monkeypatch.setattr(preemption, "_state", preemption._State())
    saved = []
    made = SimpleNamespace(
        global_step=0,
        is_global_zero=True,
        saved=saved,
        strategy=SimpleNamespace(gather=lambda values: [values, made.others]),
    )
    made.others = [0]
    made.save_checkpoint = lambda path: (saved.append(path.name), path.mkdir(parents=True))
    return made


def test_after_so_many_steps_and_at_the_end(tmp_path, trainer):
    saving = Saving(tmp_path, 3, 2, "visllama train resume=RUN")
    saving.on_train_start(trainer)
    for trainer.global_step in range(1, 9):
        saving.on_train_batch_end(trainer)
    saving.on_validation_end(trainer)
    assert trainer.saved == [name_of(3), name_of(6)]
    saving.on_train_end(trainer)
    assert trainer.saved[-1] == name_of(8)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == [name_of(6), name_of(8)], "two are kept"


def test_without_a_number_at_each_validation(tmp_path, trainer):
    saving = Saving(tmp_path, None, 5, "visllama train resume=RUN")
    saving.on_train_start(trainer)
    for trainer.global_step in range(1, 5):
        saving.on_train_batch_end(trainer)
        if trainer.global_step % 2 == 0:
            saving.on_validation_end(trainer)
    saving.on_train_end(trainer)
    assert trainer.saved == [name_of(2), name_of(4)], "the last step is saved once"


@pytest.mark.parametrize("own", [True, False], ids=["this-rank", "another"])
@pytest.mark.parametrize("hook", ["on_train_batch_end", "on_validation_batch_end"])
def test_a_rank_that_was_told_takes_all_along(tmp_path, trainer, own, hook, capsys):
    saving = Saving(tmp_path, None, 2, "visllama train resume=RUN")
    saving.on_train_start(trainer)
    trainer.global_step = 5
    getattr(saving, hook)(trainer)
    assert not trainer.saved
    if own:
        preemption.tell(preemption.LEAVE)
    else:
        trainer.others = [preemption.REQUEUE]
    with pytest.raises(preemption.Preempted) as left:
        getattr(saving, hook)(trainer)
    assert trainer.saved == [name_of(5)] and left.value.code == 143
    assert left.value.what == (preemption.LEAVE if own else preemption.REQUEUE)
    assert "saved at step 5. It goes on by:  visllama train resume=RUN" in capsys.readouterr().out


def test_what_a_resumed_run_will_come_to_again_is_dropped(tmp_path, trainer):
    for step in (4, 8):
        (tmp_path / "checkpoints" / name_of(step)).mkdir(parents=True)
    trainer.global_step = 4
    Saving(tmp_path, None, 2, "visllama train resume=RUN").on_train_start(trainer)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == [name_of(4)]


def test_a_checkpoint_that_was_read_is_not_written_again(tmp_path, trainer):
    """As where a run was stopped behind its last step, and only validates it."""
    saving = Saving(tmp_path, None, 2, "visllama train resume=RUN")
    saving.on_load_checkpoint(trainer, None, {"global_step": 8})
    trainer.global_step = 8
    saving.on_validation_end(trainer)
    assert not trainer.saved
