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
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}

PAIRS = tuple(product(COLORS, SHAPES))
# One pair for each color, in which each shape comes once too.
HELD_OUT_PAIRS = tuple((color, SHAPES[(2 * i + i // 3) % 6]) for i, color in enumerate(COLORS))
SEEN_PAIRS = tuple(pair for pair in PAIRS if pair not in HELD_OUT_PAIRS)

T = TypeVar("T")


class Dice(random.Random):
    """A seeded stream of random draws. It draws by `random()` alone, whose sequence Python promises to keep."""

    def pick(self, options: Sequence[T]) -> T:
        """Return one of the options, each as likely as the others.

        Raises:
            IndexError: If there are no options.
        """
        return options[int(self.random() * len(options))]

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
        """The name in `PLACES` of the cell of the first thing; for scenes of one thing, whose cells all have names.

        Raises:
            StopIteration: If the cell has no name, which is possible in scenes of several things.
        """
        return next(name for name, cell in PLACES.items() if cell == self.things[0].cell)

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
    """Return a random scene.

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
        return Scene((Thing(color, shape, size, cell),), background)

    if kind < 0.75:
        other_color, other_shape = dice.pick([pair for pair in pairs if pair != (color, shape)])
        line = dice.pick(range(GRID))
        low, high = dice.pick(((0, 1), (1, 2), (0, 2)))
        is_horizontal = dice.chance(0.5)
        cells = [(line, low), (line, high)] if is_horizontal else [(low, line), (high, line)]
        cell, other_cell = dice.permutation(cells)
        other_size = dice.pick(SIZES)

        thing = Thing(color, shape, size, cell)
        other = Thing(other_color, other_shape, other_size, other_cell)
        return Scene(_in_order(thing, other), background)

    cells = _draw_cells(dice, (2, 3, 4))
    return Scene(tuple(Thing(color, shape, size, cell) for cell in cells), background)


def _draw_cells(dice: Dice, counts: Sequence[int]) -> list[tuple[int, int]]:
    """Draw cells of the grid, as many as one of `counts`, in the order in which they are read."""
    all_cells = list(product(range(GRID), range(GRID)))
    shuffled = dice.permutation(all_cells)
    count = dice.pick(counts)
    return sorted(shuffled[:count])


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
    things = scene.things
    first = things[0]
    edit = dice.pick(_EDITS[scene.kind])

    if edit == "background":
        background = dice.pick([other for other in BACKGROUNDS if other != scene.background])
        return replace(scene, background=background)

    if edit == "place":
        cell = dice.pick([other for other in PLACES.values() if other != first.cell])
        return replace(scene, things=(replace(first, cell=cell),))

    if edit == "count":
        # The count is drawn before the cells, in `draw_scene` behind them: published figures rest on both orders.
        count = dice.pick([other for other in (2, 3, 4) if other != len(things)])
        cells = dice.permutation(list(product(range(GRID), range(GRID))))[:count]
        return replace(scene, things=tuple(replace(first, cell=cell) for cell in sorted(cells)))

    # A plural swaps a fact of two things.
    if edit in ("colors", "shapes", "cells", "sizes"):
        field = edit.removesuffix("s")
        a, b = things
        a_value = getattr(a, field)
        b_value = getattr(b, field)
        if a_value != b_value:
            swapped = _in_order(_with(a, field, b_value), _with(b, field, a_value))
            return replace(scene, things=swapped)
        # Equal values cannot be swapped: the size of the first thing is changed instead.
        edit = "size"

    options = {"color": COLORS, "shape": SHAPES, "size": SIZES}[edit]
    value = dice.pick([option for option in options if option != getattr(first, edit)])
    if scene.kind != "two":
        return replace(scene, things=tuple(_with(thing, edit, value) for thing in things))

    # Two things of one color and shape would be of the kind "alike".
    second = things[1]
    edited = _with(first, edit, value)
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
