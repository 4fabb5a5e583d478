"""What there is in the embedded world, and which scene stands behind each record of each split.

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
from typing import TypeVar

WORLD_VERSION = 1

COLORS = ("red", "green", "blue", "yellow", "purple", "orange")
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
SIZES = ("small", "large")
BACKGROUNDS = ("white", "gray", "pink", "tan")
NUMBERS = ("zero", "one", "two", "three", "four")
GRID = 3
PLACES = {"top": (0, 1), "left": (1, 0), "center": (1, 1), "right": (1, 2), "bottom": (2, 1)}
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}

PAIRS = tuple(product(COLORS, SHAPES))
HELD_OUT_PAIRS = tuple((color, SHAPES[(2 * i + i // 3) % 6]) for i, color in enumerate(COLORS))
SEEN_PAIRS = tuple(pair for pair in PAIRS if pair not in HELD_OUT_PAIRS)

T = TypeVar("T")


class Dice(random.Random):
    """A seeded stream that draws by `random()` alone, the one method whose sequence Python promises to keep."""

    def pick(self, options: Sequence[T]) -> T:
        return options[int(self.random() * len(options))]

    def chance(self, probability: float) -> bool:
        return self.random() < probability

    def permutation(self, options: Sequence[T]) -> list[T]:
        return [option for _, _, option in sorted((self.random(), i, option) for i, option in enumerate(options))]


@dataclass(frozen=True)
class Thing:
    color: str
    shape: str
    size: str
    cell: tuple[int, int]
    """(row, column) on the grid, from the top left."""

    @property
    def pair(self) -> tuple[str, str]:
        return self.color, self.shape


@dataclass(frozen=True)
class Scene:
    """Things on a background: one, two in a relation (different pairs), or several alike."""

    things: tuple[Thing, ...]
    background: str

    @property
    def kind(self) -> str:
        if len(self.things) == 1:
            return "one"
        return "alike" if self.things[0].pair == self.things[1].pair else "two"

    @property
    def place(self) -> str:
        return next(name for name, cell in PLACES.items() if cell == self.things[0].cell)

    @property
    def relation(self) -> str:
        """How the first thing stands to the second: it is the left or the upper one."""
        return "left of" if self.things[0].cell[0] == self.things[1].cell[0] else "above"


def _in_order(a: Thing, b: Thing) -> tuple[Thing, Thing]:
    """Order two things as they are read: left or above first. A picture tells no other order."""
    return (a, b) if a.cell < b.cell else (b, a)


def draw_scene(
    dice: Dice, pairs: Sequence[tuple[str, str]], focus: Sequence[tuple[str, str]] | None = None, two: float = 0.35
) -> Scene:
    """Draw a scene whose things come from `pairs`, at least one of them from `focus` where that is given.

    A share `two` are two things in a relation, a quarter things alike, the rest one thing.
    """
    first = dice.pick(focus or pairs)
    size, background, kind = dice.pick(SIZES), dice.pick(BACKGROUNDS), dice.random()
    if kind < 0.75 - two:
        return Scene((Thing(*first, size, dice.pick(tuple(PLACES.values()))),), background)
    if kind < 0.75:
        second = dice.pick([pair for pair in pairs if pair != first])
        line, (low, high) = dice.pick(range(GRID)), dice.pick(((0, 1), (1, 2), (0, 2)))
        cells = [(line, low), (line, high)] if dice.chance(0.5) else [(low, line), (high, line)]
        cells = dice.permutation(cells)
        return Scene(_in_order(Thing(*first, size, cells[0]), Thing(*second, dice.pick(SIZES), cells[1])), background)
    cells = dice.permutation(list(product(range(GRID), range(GRID))))[: dice.pick((2, 3, 4))]
    return Scene(tuple(Thing(*first, size, cell) for cell in sorted(cells)), background)


_EDITS = {
    "one": ("color", "shape", "size", "place", "place", "background"),
    "alike": ("color", "shape", "size", "count", "background"),
    "two": ("color", "shape", "colors", "shapes", "sizes", "cells", "cells"),
}


def edit_scene(dice: Dice, scene: Scene) -> Scene:
    """Change one fact of a scene, keeping its kind: the near miss that a contrastive encoder must tell apart."""
    things = scene.things
    edit = dice.pick(_EDITS[scene.kind])
    if edit == "background":
        return replace(scene, background=dice.pick([b for b in BACKGROUNDS if b != scene.background]))
    if edit == "place":
        return replace(
            scene, things=(replace(things[0], cell=dice.pick([c for c in PLACES.values() if c != things[0].cell])),)
        )
    if edit == "count":
        count = dice.pick([n for n in (2, 3, 4) if n != len(things)])
        cells = dice.permutation(list(product(range(GRID), range(GRID))))[:count]
        return replace(scene, things=tuple(replace(things[0], cell=cell) for cell in sorted(cells)))
    if edit in ("colors", "shapes", "cells", "sizes"):
        a, b = things
        field = edit[:-1]
        if getattr(a, field) != getattr(b, field):
            swapped = (replace(a, **{field: getattr(b, field)}), replace(b, **{field: getattr(a, field)}))
            return replace(scene, things=_in_order(*swapped))
        edit = "size"
    options = {"color": COLORS, "shape": SHAPES, "size": SIZES}[edit]
    new = dice.pick([option for option in options if option != getattr(things[0], edit)])
    if scene.kind != "two":
        return replace(scene, things=tuple(replace(thing, **{edit: new}) for thing in things))
    edited = replace(things[0], **{edit: new})
    return scene if edited.pair == things[1].pair else replace(scene, things=(edited, things[1]))


def scene_of(split: str, index: int) -> tuple[Scene, Dice]:
    """Return the scene of a record, and the dice that its texts go on drawing from.

    Args:
        split: `train` and `val` show seen pairs only; in `test` a held-out pair is part of every scene; any other name
            (the backbones' own training text and pictures) shows all pairs, and more of the relations that are hard to
            learn.
    """
    dice = Dice(f"scenes-{WORLD_VERSION}/{split}/{index}")
    if split in ("train", "val"):
        return draw_scene(dice, SEEN_PAIRS), dice
    if split == "test":
        return draw_scene(dice, PAIRS, HELD_OUT_PAIRS), dice
    return draw_scene(dice, PAIRS, two=0.45), dice
