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
        shift = int((2 * dice.random() - 1) * by)
        channels.append(min(255, max(0, value + shift)))
    return tuple(channels)


def _polygon(cx: float, cy: float, radii: list[float], first_angle: float) -> list[tuple[float, float]]:
    """Return a polygon's corners, one for each radius, at equal angles around a centre; two radii by turns: a star."""
    step = 2 * math.pi / len(radii)
    corners = []
    for i, radius in enumerate(radii):
        angle = first_angle + i * step
        corners.append((cx + radius * math.cos(angle), cy + radius * math.sin(angle)))

    return corners


def _draw_thing(draw: ImageDraw.ImageDraw, thing: Thing, background: tuple[int, ...], dice: Dice) -> None:
    s = _SUPERSAMPLING
    row, column = thing.cell

    # The order of the draws is part of the world: place first, then color.
    cx = s * ((column + 0.5) * _CELL_PX + (2 * dice.random() - 1) * _JITTER_PX)
    cy = s * ((row + 0.5) * _CELL_PX + (2 * dice.random() - 1) * _JITTER_PX)
    r = s * _RADIUS_PX[thing.size]
    fill = _jittered(_RGB[thing.color], dice)

    # The factors make shapes of one size look about equally large.
    if thing.shape in ("circle", "ring"):
        draw.ellipse((cx - r, cy - r, cx + r, cy + r), fill)
        if thing.shape == "ring":
            # The hole shows the background.
            draw.ellipse((cx - 0.55 * r, cy - 0.55 * r, cx + 0.55 * r, cy + 0.55 * r), background)
    elif thing.shape == "square":
        draw.rectangle((cx - 0.85 * r, cy - 0.85 * r, cx + 0.85 * r, cy + 0.85 * r), fill)
    elif thing.shape == "triangle":
        draw.polygon(_polygon(cx, cy + 0.2 * r, [1.15 * r] * 3, -math.pi / 2), fill)
    elif thing.shape == "star":
        draw.polygon(_polygon(cx, cy, [1.1 * r, 0.45 * r] * 5, -math.pi / 2), fill)
    else:
        draw.rectangle((cx - r, cy - 0.32 * r, cx + r, cy + 0.32 * r), fill)
        draw.rectangle((cx - 0.32 * r, cy - r, cx + 0.32 * r, cy + r), fill)


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
