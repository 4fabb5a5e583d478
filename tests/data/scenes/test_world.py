import hashlib

from visllama.data.scenes.language import captions, document, questions
from visllama.data.scenes.world import COLORS, HELD_OUT_PAIRS, SHAPES, Dice, Scene, Thing, edit_scene, scene_of


def test_the_world_never_changes():
    """Golden hash of scenes and texts: published figures rest on them, so another one needs a new WORLD_VERSION."""
    digest = hashlib.sha256()
    for split in ("train", "val", "test", "text"):
        for index in range(200):
            scene, dice = scene_of(split, index)
            digest.update(repr((scene, captions(scene, dice, 5), questions(scene, dice), document(index))).encode())
    assert digest.hexdigest()[:16] == "e081ba44b725e84d"


def test_one_held_out_pair_a_color_and_a_shape():
    assert sorted(color for color, _ in HELD_OUT_PAIRS) == sorted(COLORS)
    assert sorted(shape for _, shape in HELD_OUT_PAIRS) == sorted(SHAPES)


def pairs(split: str, index: int) -> set[tuple[str, str]]:
    return {thing.pair for thing in scene_of(split, index)[0].things}


def test_training_and_validation_never_show_a_held_out_pair():
    assert not any(pairs(split, i) & set(HELD_OUT_PAIRS) for split in ("train", "val") for i in range(1000))


def test_every_test_scene_shows_one():
    assert all(pairs("test", i) & set(HELD_OUT_PAIRS) for i in range(1000))


def test_splits_differ_and_access_in_any_order_is_the_same():
    assert scene_of("train", 7)[0] == scene_of("train", 7)[0]
    assert [scene_of("train", i)[0] for i in range(20)] != [scene_of("val", i)[0] for i in range(20)]


def test_kinds_and_relations():
    a, b = Thing("red", "ring", "small", (1, 0)), Thing("blue", "star", "large", (1, 2))
    assert (Scene((a, b), "tan").kind, Scene((a, b), "tan").relation) == ("two", "left of")
    assert Scene((Thing("red", "ring", "small", (0, 2)), b), "tan").relation == "above"
    assert Scene((a,), "tan").kind == "one" and Scene((a,), "tan").place == "left"
    assert Scene((a, Thing("red", "ring", "small", (2, 0))), "tan").kind == "alike"


def test_two_things_stand_as_they_are_read():
    """Left or above first: the order of things is in the picture, so a caption's usual order can be learned from it."""
    twos = [scene for scene in (scene_of("train", i)[0] for i in range(500)) if scene.kind == "two"]
    twos += [edit_scene(Dice(i), scene) for i, scene in enumerate(twos)]
    assert all(scene.things[0].cell < scene.things[1].cell for scene in twos)


def test_a_near_miss_keeps_the_kind_and_changes_a_little():
    dice = Dice("edits")
    scenes = [scene_of("probe", i)[0] for i in range(300)]
    edits = [edit_scene(dice, scene) for scene in scenes]
    assert all(a.kind == b.kind for a, b in zip(scenes, edits, strict=True))
    assert sum(a == b for a, b in zip(scenes, edits, strict=True)) < 10
