"""What is said about scenes: captions, questions, language-only instructions, and the text that the tiny LLaMA reads.

LLaMA's text holds questions of the `TOLD_QUESTIONS` types only; of the other facts it holds nothing but statements, so
that instruction tuning has something to teach.
"""

from __future__ import annotations

from collections.abc import Collection

from visllama.data.scenes.world import COLORS, NUMBERS, OPPOSITE, PLACES, SHAPES, SIZES, Dice, Scene, Thing, scene_of

TOLD_QUESTIONS = ("color", "count")
UNTOLD_QUESTIONS = ("size", "shape", "relation")
OPTIONAL_FACTS = {"size": 0.5, "place": 0.75, "background": 0.5}
"""What a sentence may leave out, and how often it is told."""
_CORNERS = {"triangle": "three", "square": "four", "circle": "no", "ring": "no", "star": "ten", "cross": "twelve"}


def _noun(thing: Thing, sized: bool, count: int = 1) -> str:
    words = ([thing.size] if sized else []) + [thing.color, thing.shape]
    if count == 1:
        return f"{'an' if words[0] == 'orange' else 'a'} {' '.join(words)}"
    plural = thing.shape + ("es" if thing.shape == "cross" else "s")
    return f"{NUMBERS[count]} {' '.join([*words[:-1], plural])}"


def caption(scene: Scene, dice: Dice, facts: Collection[str] | None = None) -> str:
    """Return one true sentence about a scene, with the optional facts that are given, or a random part of them."""
    told = [fact for fact, probability in OPTIONAL_FACTS.items() if dice.chance(probability)]
    facts = told if facts is None else facts
    sized = "size" in facts
    if scene.kind == "two":
        a, b, relation = *scene.things, scene.relation
        if dice.chance(0.3):
            a, b, relation = b, a, OPPOSITE[relation]
        sentence = f"{_noun(a, sized)} {relation} {_noun(b, sized)}"
        return dice.pick(("{}", "{}", "there is {}", "the picture shows {}")).format(sentence)
    sentence = _noun(scene.things[0], sized, len(scene.things))
    if scene.kind == "one" and "place" in facts:
        sentence += f" at the {scene.place}"
    if "background" in facts:
        sentence += f" on a {scene.background} background"
    verb = "is" if scene.kind == "one" else "are"
    return dice.pick(("{}", "{}", f"there {verb} {{}}", "the picture shows {}")).format(sentence)


def captions(scene: Scene, dice: Dice, count: int) -> list[str]:
    """Return `count` sentences, as that many people would say them; some may be equal."""
    return [caption(scene, dice) for _ in range(count)]


def question(scene: Scene, kind: str, dice: Dice) -> tuple[str, str] | None:
    """Ask a question of one type with its one-word answer (or relation), or None where the scene allows none."""
    thing = dice.pick(scene.things)
    shapes, colors = [t.shape for t in scene.things], [t.color for t in scene.things]
    the_shape, by_shape = f"the {thing.shape}", scene.kind == "one" or shapes.count(thing.shape) == 1
    by_color = scene.kind == "one" or colors.count(thing.color) == 1
    if kind == "color":
        if scene.kind == "alike":
            return f"what color are the {_noun(thing, False, 2).split()[-1]}?", thing.color
        return (f"what color is {the_shape}?", thing.color) if by_shape else None
    if kind == "count":
        if scene.kind == "two":
            return ("how many things are there?", "two") if dice.chance(0.3) else None
        return f"how many {_noun(thing, False, 2).split()[-1]} are there?", NUMBERS[len(scene.things)]
    if kind == "size":
        if scene.kind == "alike":
            return f"what size are the {_noun(thing, False, 2).split()[-1]}?", thing.size
        return (f"what size is {the_shape}?", thing.size) if by_shape else None
    if kind == "shape":
        if scene.kind == "alike":
            return f"what shape are the {thing.color} things?", thing.shape
        return (f"what shape is the {thing.color} thing?", thing.shape) if by_color else None
    if scene.kind != "two" or shapes[0] == shapes[1]:
        return None
    a, b, relation = *scene.things, scene.relation
    if dice.chance(0.5):
        a, b, relation = b, a, OPPOSITE[relation]
    return f"where is the {a.shape} from the {b.shape}?", relation


def questions(
    scene: Scene, dice: Dice, kinds: tuple[str, ...] = TOLD_QUESTIONS + UNTOLD_QUESTIONS
) -> list[dict[str, str]]:
    """Ask at most one question of each type that the scene allows."""
    asked = [(kind, question(scene, kind, dice)) for kind in kinds]
    return [{"type": kind, "question": pair[0], "answer": pair[1]} for kind, pair in asked if pair]


def instruction(dice: Dice, held_out: bool = False) -> dict[str, str]:
    """Return a language-only instruction and its one right response; `held_out` items share no wording with others."""
    words = COLORS + SHAPES + SIZES
    while True:
        kind, one, two = dice.pick(("repeat", "reverse", "pair")), dice.pick(words), dice.pick(words)
        if one == two or ((words.index(one) + words.index(two)) % 5 == 0) != held_out:
            continue
        if kind == "repeat":
            return {"type": kind, "instruction": f"say {one} {two} again", "response": f"{one} {two}"}
        if kind == "reverse":
            return {"type": kind, "instruction": f"say {one} {two} the other way round", "response": f"{two} {one}"}
        return {"type": kind, "instruction": f"join {one} with {two}", "response": f"{one} and {two}"}


def _fact(dice: Dice) -> str:
    one, two, shape, number = dice.pick(COLORS), dice.pick(SHAPES), dice.pick(SHAPES), 1 + int(dice.random() * 3)
    facts = (
        f"a {shape} has {_CORNERS[shape]} corners",
        f"{NUMBERS[number + 1]} is more than {NUMBERS[number]}",
        "the opposite of small is large",
        "left of is the other way round of right of",
        "above is the other way round of below",
        f"{one} is a color",
        f"{shape} is a shape",
        f"{one} and {two} are two words",
        f"{two} {one} is {one} {two} the other way round",
        f"the {dice.pick(tuple(PLACES))} is a place",
    )
    return dice.pick(facts)


def notes(scene: Scene, dice: Dice) -> str:
    """Return a scene's facts in no fixed order, as somebody's notes hold them.

    Who reads only sentences learns to copy a word by the word before it. Notes make the tiny LLaMA know the facts
    themselves, which is what image vectors have to give it.
    """
    if scene.kind == "two":
        a, b, relation = *scene.things, scene.relation
        if dice.chance(0.5):
            a, b, relation = b, a, OPPOSITE[relation]
        first, second = (" ".join(dice.permutation([t.color, t.shape, t.size])) for t in (a, b))
        return f"{first} {relation} {second}"
    thing = scene.things[0]
    facts = [thing.color, thing.shape, thing.size, f"{scene.background} background"]
    facts.append(scene.place if scene.kind == "one" else NUMBERS[len(scene.things)])
    return " ".join(dice.permutation(facts))


def document(index: int) -> str:
    """Write one text for the tiny LLaMA: sentences on one scene, at times questions of the told types, at times facts.

    Some texts tell of a scene in a paragraph. Most are two lines, the second true to what the first has told: an image
    later takes the place of the first.
    """
    scene, dice = scene_of("text", index)
    form = dice.random()
    if form < 0.1:
        return ". ".join(_fact(dice) for _ in range(1 + int(dice.random() * 4))) + "."
    told = [notes(scene, dice) if dice.chance(0.6) else caption(scene, dice)]
    if form < 0.35:
        return ". ".join(told + [caption(scene, dice) for _ in range(2 + int(dice.random() * 4))]) + "."
    if form < 0.55:
        asked = dice.permutation(questions(scene, dice, TOLD_QUESTIONS))
        return "\n".join(told + [f"question: {a['question']} answer: {a['answer']}" for a in asked])
    return "\n".join(told + [caption(scene, dice)] * dice.chance(0.9))
