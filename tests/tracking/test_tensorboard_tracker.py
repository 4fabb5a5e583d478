"""What TensorBoard is given, read back by its own reader."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from visllama.tracking.tracker import Picture

pytest.importorskip("tensorboard")
from tests.support.tensorboard_files import read_events
from visllama.tracking.tensorboard_tracker import TensorBoardTracker


@pytest.fixture
def tracker(tmp_path):
    tracker = TensorBoardTracker(str(tmp_path))
    tracker.log_hyperparams({"optim": {"lr": 0.004}, "plugins": []})
    for step in range(6):
        tracker.log_metrics({"train/loss": 8.0 / 2**step}, step)
    return tracker


def test_figures_have_their_names_and_the_config_is_there(tracker, tmp_path):
    tracker.close(0)
    tracker.close(0)  # again changes nothing
    events = read_events(tmp_path)
    assert events.scalars == {"train/loss": [(step, 8.0 / 2**step) for step in range(6)]}  # powers of two: exact
    assert "    optim:\n      lr: 0.004" in events.texts["config"][0][1]


def test_pictures_are_images_and_a_table_in_which_nothing_is_markup(tracker, tmp_path):
    said = Picture("scenes", "val-1", Image.new("RGB", (7, 5), (9, 8, 7)), "", "a <b>red</b> | cat", "a *dog*")
    tracker.log_pictures("val/pictures", [said, said._replace(key="val-2", image=None)], 3)
    tracker.close(0)
    events = read_events(tmp_path)
    ((step, content),) = events.images["val/pictures/scenes/val-1"]
    picture = Image.open(io.BytesIO(content))
    assert (step, picture.size, picture.getpixel((0, 0))) == (3, (7, 5), (9, 8, 7))
    assert list(events.images) == ["val/pictures/scenes/val-1"], "the second has no picture"
    ((_, table),) = events.texts["val/pictures"]
    assert r"| a \<b\>red\</b\> \| cat | a \*dog\* |" in table and len(table.splitlines()) == 4


def test_a_run_that_goes_on_writes_its_later_steps_anew(tracker, tmp_path):
    said = Picture("s", "k", Image.new("RGB", (2, 2)), "", "a cat", "a dog")
    tracker.log_pictures("val/pictures", [said], 4)
    tracker.close(1)
    again = TensorBoardTracker(str(tmp_path))
    again.go_on(3, {3: {"train/loss"}, 4: {"train/loss", "val/loss"}})
    for step in range(3, 8):
        again.log_metrics({"train/loss": float(step)}, step)
        if step % 2 == 0:
            again.log_pictures("val/pictures", [said], step)
    again.close(0)
    events = read_events(tmp_path)
    assert events.scalars["train/loss"] == [
        (0, 8.0),
        (1, 4.0),
        (2, 2.0),
        *[(step, float(step)) for step in range(3, 8)],
    ]
    for shown in (events.images["val/pictures/s/k"], events.texts["val/pictures"]):
        assert [step for step, _ in shown] == [4, 6], "once each"
