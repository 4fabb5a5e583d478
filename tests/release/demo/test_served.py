"""Models are shared one at a time, and clients may ask for so much."""

from __future__ import annotations

import threading

import pytest

from visllama.errors import ConfigError
from visllama.release.demo.served import Busy, Served, Shelf, names_of


def test_one_at_a_time_and_so_many_wait():
    model = Served("a", "pipeline", {}, 2)
    inside, leave, waiting = threading.Event(), threading.Event(), []

    def hold() -> None:
        with model.turn() as pipeline:
            assert pipeline == "pipeline"
            inside.set()
            leave.wait(30)

    def wait() -> None:
        with model.turn():
            waiting.append(1)

    threads = [threading.Thread(target=hold), *(threading.Thread(target=wait) for _ in range(2))]
    threads[0].start()
    inside.wait(30)
    for thread in threads[1:]:
        thread.start()
    while model._num_waiting < 2:
        pass
    with pytest.raises(Busy, match="2 requests wait already"), model.turn():
        pass
    assert waiting == []
    leave.set()
    for thread in threads:
        thread.join(30)
    assert len(waiting) == 2
    with model.turn():
        pass


def test_a_turn_may_be_ended_by_another_thread():
    """gradio takes up a generator by one thread, and ends it by another."""
    model = Served("a", "pipeline", {}, 2)

    def generate():
        with model.turn():
            yield 1

    generator = generate()
    for step in (lambda: next(generator), generator.close):
        thread = threading.Thread(target=step)
        thread.start()
        thread.join(30)
    with model.turn():
        pass


def test_wishes_are_laid_over_the_models_own_settings():
    model = Served("a", None, {"num_beams": 5, "max_new_tokens": 40, "length_penalty": 2.0}, 1)
    assert model.settings() == {"num_beams": 5, "max_new_tokens": 40, "length_penalty": 2.0}
    assert model.settings(num_beams=1)["num_beams"] == 1
    sampled = model.settings(num_beams=1, temperature=1, max_new_tokens=3)
    assert (sampled["do_sample"], sampled["temperature"], sampled["max_new_tokens"]) == (True, 1.0, 3)


def test_models_are_chosen_by_name():
    shelf = Shelf([Served(name, None, {}, 1) for name in ("a", "b")])
    assert (shelf.choose().name, shelf.choose("b").name, shelf.names) == ("a", "b", ["a", "b"])
    for name in ("c", 5, ["a"], {}):
        with pytest.raises(ConfigError, match="weights: has to be one of a, b"):
            shelf.choose(name)


def test_names_are_those_of_the_runs(tmp_path):
    folders = [tmp_path / "x" / "1" / "weights", tmp_path / "y" / "1" / "weights", tmp_path / "2", tmp_path / "z" / "2"]
    assert names_of([*folders, folders[0]]) == ["x/1", "y/1", "2", "2 (2)", "x/1 (2)"]


@pytest.mark.parametrize("value", [10**400, -(10**400), float("nan"), float("inf"), "1", True, 0])
def test_a_wish_out_of_range_is_refused(value):
    model = Served("a", None, {}, 1)
    with pytest.raises(ConfigError, match="num_beams: has to be a whole number"):
        model.settings(num_beams=value)
    with pytest.raises(ConfigError, match="temperature: has to be a number above 0"):
        model.settings(temperature=value)
