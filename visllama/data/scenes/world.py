"""Draw the scenes of the embedded world, a small world of colored shapes on a grid of 3 x 3 cells.

A scene is one thing at a named place, two things in a relation, or two to four things alike. Six of the 36 color and
shape pairs (one for each color and for each shape) are *held out*: no training scene shows them, all test scenes do.

All is drawn from `(WORLD_VERSION, split, index)`, so a record is the same on every machine and in any order of access.
Nothing here may change without a new `WORLD_VERSION`: published figures rest on it.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, TypeVar

WORLD_VERSION = 1
"""Part of every seed: another version is another world."""

COLORS = ("red", "green", "blue", "yellow", "purple", "orange")
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
SIZES = ("small", "large")
BACKGROUNDS = ("white", "gray", "pink", "tan")
NUMBERS = ("zero", "one", "two", "three", "four")
GRID = 3
"""Number of rows and of columns of the grid."""
PLACES = {"top": (0, 1), "left": (1, 0), "center": (1, 1), "right": (1, 2), "bottom": (2, 1)}
"""The cells that have a name, as (row, column) from the top left; the corners have none."""
_CELLS = tuple(product(range(GRID), range(GRID)))
_COUNTS = (2, 3, 4)
"""The numbers of things that a scene of things alike may have."""
_OPTIONS = {"color": COLORS, "shape": SHAPES, "size": SIZES}
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
"""Each relation of a thing to another, and the one of the other to the first."""

PAIRS = tuple(product(COLORS, SHAPES))
"""All pairs of a color and a shape."""
HELD_OUT_PAIRS = tuple((color, SHAPES[(2 * i + i // 3) % 6]) for i, color in enumerate(COLORS))
"""The pairs that no training scene shows: one for each color, in which each shape comes once too."""
SEEN_PAIRS = tuple(pair for pair in PAIRS if pair not in HELD_OUT_PAIRS)
"""The pairs that training scenes show."""

T = TypeVar("T")


class Dice(random.Random):
    """A seeded stream of random draws. It draws by `random()` alone, whose sequence Python promises to keep."""

    def pick(self, options: Sequence[T]) -> T:
        """Return one of the options, each as likely as the others."""
        index = int(self.random() * len(options))
        return options[index]

    def chance(self, probability: float) -> bool:
        """Return True with this probability, from 0 to 1, else False."""
        return self.random() < probability

    def permutation(self, options: Sequence[T]) -> list[T]:
        """Return the options as a new list in random order."""
        keys = [self.random() for _ in options]
        order = sorted(range(len(options)), key=lambda i: (keys[i], i))
        return [options[i] for i in order]


@dataclass(frozen=True)
class Thing:
    """A shape of some color and size in a cell of the grid."""

    color: str
    shape: str
    size: str
    cell: tuple[int, int]
    """(row, column) on the grid, from (0, 0) at the top left."""

    @property
    def pair(self) -> tuple[str, str]:
        """Its color and its shape."""
        return self.color, self.shape


@dataclass(frozen=True)
class Scene:
    """Things on a background: one thing, two things of different pairs, or two to four things that are alike.

    Attributes:
        things: The things, in the order in which they are read: row by row, from the left.
        background: One of `BACKGROUNDS`.
    """

    things: tuple[Thing, ...]
    background: str

    @property
    def kind(self) -> str:
        """The scene's kind: "one" thing, "two" in a relation, or several things "alike"."""
        if len(self.things) == 1:
            return "one"
        first, second = self.things[:2]
        return "alike" if first.pair == second.pair else "two"

    @property
    def place(self) -> str:
        """The name in `PLACES` of the cell of the first thing; for scenes of one thing, whose cells all have names."""
        names = {cell: name for name, cell in PLACES.items()}
        return names[self.things[0].cell]

    @property
    def relation(self) -> str:
        """Where the first thing stands from the second: "left of" or "above"; has a meaning in the kind "two" only.

        Raises:
            IndexError: If the scene has one thing.
        """
        first_row, _ = self.things[0].cell
        second_row, _ = self.things[1].cell
        return "left of" if first_row == second_row else "above"


def _in_order(a: Thing, b: Thing) -> tuple[Thing, Thing]:
    """Return two things in the order in which they are read: the left or the upper one first.

    A picture tells no other order.
    """
    if a.cell < b.cell:
        return a, b
    return b, a


def draw_scene(
    dice: Dice, pairs: Sequence[tuple[str, str]], focus: Sequence[tuple[str, str]] | None = None, two: float = 0.35
) -> Scene:
    """Draw a random scene, and return it.

    Args:
        dice: The stream that is drawn from. The order of the draws is part of the world, and never changes.
        pairs: The pairs of a color and a shape that the things may have; at least two.
        focus: Pairs of a color and a shape; at least one thing has one of these. None or empty takes all of `pairs`.
        two: The probability, up to 0.75, of two things in a relation. Two to four things that are alike have the
            probability 0.25, and a single thing has the rest.
    """
    color, shape = dice.pick(focus or pairs)
    size = dice.pick(SIZES)
    background = dice.pick(BACKGROUNDS)
    kind = dice.random()

    if kind < 0.75 - two:
        cell = dice.pick(tuple(PLACES.values()))
        thing = Thing(color, shape, size, cell)
        return Scene((thing,), background)

    if kind < 0.75:
        other_pairs = [pair for pair in pairs if pair != (color, shape)]
        other_color, other_shape = dice.pick(other_pairs)
        cell, other_cell = _draw_cells_in_line(dice)
        other_size = dice.pick(SIZES)

        thing = Thing(color, shape, size, cell)
        other = Thing(other_color, other_shape, other_size, other_cell)
        return Scene(_in_order(thing, other), background)

    shuffled = dice.permutation(_CELLS)
    count = dice.pick(_COUNTS)
    return Scene(_alike(Thing(color, shape, size, _CELLS[0]), shuffled[:count]), background)


def _draw_cells_in_line(dice: Dice) -> list[tuple[int, int]]:
    """Draw two cells of one row or of one column, in random order."""
    line = dice.pick(range(GRID))
    low, high = dice.pick(((0, 1), (1, 2), (0, 2)))
    is_horizontal = dice.chance(0.5)

    cells = [(line, low), (line, high)] if is_horizontal else [(low, line), (high, line)]
    return dice.permutation(cells)


def _alike(thing: Thing, cells: Sequence[tuple[int, int]]) -> tuple[Thing, ...]:
    """Return copies of a thing in other cells, in the order in which they are read."""
    return tuple(replace(thing, cell=cell) for cell in sorted(cells))


_EDITS = {
    "one": ("color", "shape", "size", "place", "place", "background"),
    "alike": ("color", "shape", "size", "count", "background"),
    "two": ("color", "shape", "colors", "shapes", "sizes", "cells", "cells"),
}


def edit_scene(dice: Dice, scene: Scene) -> Scene:
    """Return a near miss of a scene: the scene with one random fact changed, or swapped between its two things.

    The kind of the scene stays. Where the change that is drawn would make two things alike, the scene itself is
    returned.

    Args:
        dice: Draws the change.
        scene: The scene, which is not changed.
    """
    first = scene.things[0]
    edit = dice.pick(_EDITS[scene.kind])

    if edit == "background":
        background = _pick_other(dice, BACKGROUNDS, scene.background)
        return replace(scene, background=background)

    if edit == "place":
        cell = _pick_other(dice, tuple(PLACES.values()), first.cell)
        thing = replace(first, cell=cell)
        return replace(scene, things=(thing,))

    if edit == "count":
        # The count is drawn before the cells, in `draw_scene` behind them: published figures rest on both orders.
        count = _pick_other(dice, _COUNTS, len(scene.things))
        shuffled = dice.permutation(_CELLS)
        return replace(scene, things=_alike(first, shuffled[:count]))

    # A plural swaps a fact of two things.
    if edit in ("colors", "shapes", "cells", "sizes"):
        field = edit.removesuffix("s")
        swapped = _swap(scene, field)
        if swapped is not None:
            return swapped
        # Equal values cannot be swapped: the size of the first thing is changed instead.
        edit = "size"
    return _change_things(dice, scene, edit)


def _pick_other(dice: Dice, options: Sequence[T], present: T) -> T:
    """Return a random one of the options that is not the one at present."""
    others = [option for option in options if option != present]
    return dice.pick(others)


def _swap(scene: Scene, field: str) -> Scene | None:
    """Return a scene of two things with the values of one field swapped between them; None where these are equal."""
    a, b = scene.things
    a_value = getattr(a, field)
    b_value = getattr(b, field)
    if a_value == b_value:
        return None

    new_a = _with(a, field, b_value)
    new_b = _with(b, field, a_value)
    return replace(scene, things=_in_order(new_a, new_b))


def _change_things(dice: Dice, scene: Scene, field: str) -> Scene:
    """Return a scene with another color, shape or size of its things; of two in a relation, of the first alone.

    Where that would make the two of one color and shape, the scene itself is returned.
    """
    first = scene.things[0]
    value = _pick_other(dice, _OPTIONS[field], getattr(first, field))
    if scene.kind != "two":
        things = [_with(thing, field, value) for thing in scene.things]
        return replace(scene, things=tuple(things))

    # Two things of one color and shape would be of the kind "alike".
    second = scene.things[1]
    edited = _with(first, field, value)
    if edited.pair == second.pair:
        return scene
    return replace(scene, things=(edited, second))


def _with(thing: Thing, field: str, value: Any) -> Thing:
    """Return a thing with another value of one field."""
    return replace(thing, **{field: value})


def scene_of(split: str, index: int) -> tuple[Scene, Dice]:
    """Return the scene of a record, and the dice that drew it, from which its texts are drawn next.

    The same arguments always return the same scene.

    Args:
        split: "train" and "val" show pairs of `SEEN_PAIRS` only; each scene of "test" shows one of `HELD_OUT_PAIRS`.
            Any other name ("clip", "text", "probe": the backbones' own) shows all pairs, and more scenes of two
            things, whose relations are hard to learn.
        index: Number of the record in the split, from 0.
    """
    dice = Dice(f"scenes-{WORLD_VERSION}/{split}/{index}")
    if split in ("train", "val"):
        return draw_scene(dice, SEEN_PAIRS), dice
    if split == "test":
        return draw_scene(dice, PAIRS, HELD_OUT_PAIRS), dice

    return draw_scene(dice, PAIRS, two=0.45), dice
