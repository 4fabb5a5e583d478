"""Draw a scene as a picture of 48 x 48 pixels; each grid cell has 16 x 16 pixels, as a patch of the tiny CLIP has."""

from __future__ import annotations

import math

from PIL import Image, ImageDraw

from visllama.data.scenes.world import GRID, Dice, Scene, Thing

IMAGE_SIZE_PX = 48
"""Height and width of a picture, in pixels."""
_CELL_PX = IMAGE_SIZE_PX // GRID
_SUPERSAMPLING = 4
_JITTER_PX = 0.8
_RADIUS_PX = {"small": 4.7, "large": 7.2}
# Backgrounds are lighter than things, so that a shape looks alike in every color: the tiny CLIP learns shapes by it.
_RGB = {
    "red": (214, 40, 40),
    "green": (40, 160, 60),
    "blue": (45, 85, 215),
    "yellow": (240, 215, 40),
    "purple": (145, 50, 165),
    "orange": (245, 135, 25),
    "white": (247, 247, 247),
    "gray": (195, 195, 195),
    "pink": (250, 205, 220),
    "tan": (230, 212, 170),
}


def _jittered(rgb: tuple[int, int, int], dice: Dice, by: int = 7) -> tuple[int, ...]:
    """Return a color with each of its channels moved at random, by less than `by`."""
    channels = []
    for value in rgb:
        shift = int(_around_zero(dice) * by)
        channel = min(255, max(0, value + shift))
        channels.append(channel)
    return tuple(channels)


def _around_zero(dice: Dice) -> float:
    """Draw a number from -1 to 1."""
    return 2 * dice.random() - 1


def _polygon(cx: float, cy: float, radii: list[float]) -> list[tuple[float, float]]:
    """Return a polygon's corners, one for each radius, at equal angles around a centre; two radii by turns: a star.

    The first corner is above the centre.
    """
    step = 2 * math.pi / len(radii)
    corners = []
    for i, radius in enumerate(radii):
        angle = -math.pi / 2 + i * step
        x = cx + radius * math.cos(angle)
        y = cy + radius * math.sin(angle)
        corners.append((x, y))

    return corners


def _box(cx: float, cy: float, half_width: float, half_height: float) -> tuple[float, float, float, float]:
    """Return the left, top, right and bottom edge of a box around a centre."""
    left = cx - half_width
    top = cy - half_height
    right = cx + half_width
    bottom = cy + half_height
    return left, top, right, bottom


def _draw_thing(draw: ImageDraw.ImageDraw, thing: Thing, background: tuple[int, ...], dice: Dice) -> None:
    row, column = thing.cell

    # The order of the draws is part of the world: place first, then color.
    x_px = (column + 0.5) * _CELL_PX + _around_zero(dice) * _JITTER_PX
    y_px = (row + 0.5) * _CELL_PX + _around_zero(dice) * _JITTER_PX
    fill = _jittered(_RGB[thing.color], dice)

    cx = _SUPERSAMPLING * x_px
    cy = _SUPERSAMPLING * y_px
    r = _SUPERSAMPLING * _RADIUS_PX[thing.size]

    # The factors make shapes of one size look about equally large.
    if thing.shape in ("circle", "ring"):
        draw.ellipse(_box(cx, cy, r, r), fill)
        if thing.shape == "ring":
            # The hole shows the background.
            hole_r = 0.55 * r
            draw.ellipse(_box(cx, cy, hole_r, hole_r), background)
    elif thing.shape == "square":
        half_side = 0.85 * r
        draw.rectangle(_box(cx, cy, half_side, half_side), fill)
    elif thing.shape == "triangle":
        # The corners of a triangle are not centred in its height.
        corners = _polygon(cx, cy + 0.2 * r, [1.15 * r] * 3)
        draw.polygon(corners, fill)
    elif thing.shape == "star":
        corners = _polygon(cx, cy, [1.1 * r, 0.45 * r] * 5)
        draw.polygon(corners, fill)
    else:
        # A cross is two bars.
        half_bar = 0.32 * r
        draw.rectangle(_box(cx, cy, r, half_bar), fill)
        draw.rectangle(_box(cx, cy, half_bar, r), fill)


def render(scene: Scene, dice: Dice) -> Image.Image:
    """Return an RGB picture of a scene, of `IMAGE_SIZE_PX` a side.

    Args:
        scene: The scene.
        dice: Draws a shift of each thing, by less than a pixel, and of each color, by less than 7 of 255 in each
            channel. Dice in the same state make the same picture.
    """
    background = _jittered(_RGB[scene.background], dice)
    # Drawn larger and then averaged, so that edges are smooth.
    side = IMAGE_SIZE_PX * _SUPERSAMPLING
    image = Image.new("RGB", (side, side), background)
    draw = ImageDraw.Draw(image)

    for thing in scene.things:
        _draw_thing(draw, thing, background, dice)
    return image.resize((IMAGE_SIZE_PX, IMAGE_SIZE_PX), Image.Resampling.BOX)
