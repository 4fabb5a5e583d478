import numpy as np
import pytest

from visllama.data.scenes.renderer import render
from visllama.data.scenes.world import SHAPES, Dice, Scene, Thing, scene_of


@pytest.mark.parametrize("shape", SHAPES)
def test_a_thing_stays_in_its_cell(shape):
    """Patch = grid cell is what makes shapes visible to the tiny CLIP."""
    image = np.asarray(render(Scene((Thing("red", shape, "large", (1, 2)),), "white"), Dice(1))).astype(int)
    differs = np.abs(image - image[0, 0]).sum(-1) > 30
    rows, columns = np.nonzero(differs)
    assert rows.min() >= 15 and rows.max() <= 32 and columns.min() >= 31
    assert differs.sum() > 40


def test_the_same_dice_give_the_same_picture():
    (scene, one), (_, two) = scene_of("train", 3), scene_of("train", 3)
    assert render(scene, one).tobytes() == render(scene, two).tobytes()
    assert render(scene, one).tobytes() != render(scene, Dice(9)).tobytes()
