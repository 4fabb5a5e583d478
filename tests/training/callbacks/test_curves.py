from types import SimpleNamespace

import pytest
from PIL import Image

from visllama.training.callbacks.curves import Curves, equal_rates, losses_by_source


@pytest.fixture
def curves(tmp_path):
    """What is remembered of 20 steps, of which two were validated."""
    curves = Curves(tmp_path / "curves.png")
    for step in range(1, 21):
        trainer = SimpleNamespace(
            global_step=step,
            log_every_n_steps=5,
            callback_metrics={
                "train/loss": 1 / step,
                "train/loss/vqa": 2 / step,
                "train/samples_per_second": 7.0,
                "lr/connector": 0.1,
                "lr/connector_no_decay": 0.1,
                "lr/markers": 0.1,
                "lr/adapter": 0.2,
                "val/loss": 2.0,
            },
        )
        curves.on_train_batch_end(trainer)
        if step % 10 == 0:
            curves.on_validation_end(trainer)
    return curves


def test_losses_are_remembered_at_logged_steps_and_validations(curves):
    assert [step for step, _ in curves.points["train/loss"]] == [1, 5, 10, 15, 20]
    assert [step for step, _ in curves.points["val/loss"]] == [10, 20]


def test_the_picture_is_there_before_the_run_ends(curves):
    assert Image.open(curves.path).size[0] > 800
    curves.path.unlink()
    curves.teardown(None, None, stage="fit")
    assert curves.path.is_file()


def test_losses_go_by_source(curves):
    found = losses_by_source(curves.points)
    assert {source: sorted(kinds) for source, kinds in found.items()} == {"": ["train", "val"], "vqa": ["train"]}


def test_equal_rates_are_one_line(curves):
    assert [label for label, _ in equal_rates(curves.points)] == ["adapter", "connector, markers"]


def test_what_a_checkpoint_gives_back_is_drawn_too(curves, tmp_path):
    resumed = Curves(tmp_path / "resumed.png")
    resumed.load_state_dict({"points": {name: [list(p) for p in points] for name, points in curves.points.items()}})
    resumed.draw()
    assert (tmp_path / "resumed.png").is_file()
