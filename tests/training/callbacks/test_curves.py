import math
from types import SimpleNamespace

import pytest
from PIL import Image

from visllama.training.callbacks.curves import Curves, equal_rates, is_cider, losses_by_source


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
                "train/gradient_norm": math.inf if step == 5 else 10.0 / step,
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


def drawn_panels(curves, monkeypatch) -> dict[str, list[tuple[str, list[float]]]]:
    """Return the titles of the panels that are drawn, each with the labels and values of its lines."""
    from matplotlib import pyplot as plt

    kept = []
    monkeypatch.setattr(plt, "close", kept.append)
    curves.draw()
    panels = {}
    for axes in kept[0].axes:
        if axes.get_title():
            panels[axes.get_title()] = [(line.get_label(), line.get_ydata()) for line in axes.lines]
    monkeypatch.undo()
    plt.close(kept[0])
    return panels


def test_each_panel_has_its_lines(curves, monkeypatch):
    panels = drawn_panels(curves, monkeypatch)
    assert list(panels) == ["Loss", "Learning rate", "Gradient norm, before clipping", "Throughput"]
    assert {label for label, _ in panels["Loss"]} == {"train loss", "val loss", "train vqa"}
    assert [label for label, _ in panels["Learning rate"]] == ["adapter", "connector, markers"]
    ((_, norms),) = panels["Gradient norm, before clipping"]
    assert list(norms) == [10 / step for step in (1, 10, 15, 20)], "one that is not finite has no place"
    ((_, rates),) = panels["Throughput"]
    assert set(rates) == {7.0}


def test_cider_at_validations_is_drawn_beside_its_controls_where_it_is_measured(curves, monkeypatch):
    curves.points |= {"val/CIDEr": [(10, 0.8), (20, 1.1)], "val/CIDEr/blank_images": [(10, 0.1), (20, 0.2)]}
    lines = drawn_panels(curves, monkeypatch)["CIDEr at validations"]
    assert {label: list(values) for label, values in lines} == {"CIDEr": [0.8, 1.1], "blank images": [0.1, 0.2]}
    assert not is_cider("val/CIDErD") and not is_cider("val/loss")
