"""Write texts about scenes: captions, questions, instructions without a picture, and the tiny LLaMA's training text.

LLaMA's text holds questions of the `TOLD_QUESTIONS` types only. Of the other facts it holds nothing but statements, so
that instruction tuning has something to teach. Every function draws from the dice that it is given: dice in the same
state make the same text.
"""

from __future__ import annotations

from collections.abc import Collection

from visllama.data.scenes.world import COLORS, NUMBERS, OPPOSITE, PLACES, SHAPES, SIZES, Dice, Scene, Thing, scene_of

TOLD_QUESTIONS = ("color", "count")
"""The types of questions that the tiny LLaMA has read before it is tuned."""
UNTOLD_QUESTIONS = ("size", "shape", "relation")
"""The types of questions that the tiny LLaMA meets in instruction tuning first."""
OPTIONAL_FACTS = {"size": 0.5, "place": 0.75, "background": 0.5}
"""The facts that a caption may leave out, each with the probability that a caption is to tell it."""
_WORDS = COLORS + SHAPES + SIZES
"""The words of which instructions are made."""
_CORNERS = {"triangle": "three", "square": "four", "circle": "no", "ring": "no", "star": "ten", "cross": "twelve"}


def _noun(thing: Thing, sized: bool, count: int = 1) -> str:
    """Return a thing in words, or several that are alike, as "a small red star" or "two red stars"."""
    name = thing.shape if count == 1 else _plural(thing)
    name = f"{thing.color} {name}"
    if sized:
        name = f"{thing.size} {name}"

    if count > 1:
        return f"{NUMBERS[count]} {name}"
    if name.startswith("orange"):
        return f"an {name}"
    return f"a {name}"


def _plural(thing: Thing) -> str:
    ending = "es" if thing.shape == "cross" else "s"
    return thing.shape + ending


def _related(scene: Scene, dice: Dice, probability: float) -> tuple[Thing, str, Thing]:
    """Return the two things of a scene with their relation between them; with this probability, the other way round."""
    first, second = scene.things
    if dice.chance(probability):
        return second, OPPOSITE[scene.relation], first
    return first, scene.relation, second


def caption(scene: Scene, dice: Dice, facts: Collection[str] | None = None) -> str:
    """Return one true sentence about a scene, without a full stop, as "a small red star at the top".

    Args:
        scene: The scene.
        dice: Draws the form of the sentence, and where `facts` is None, the facts.
        facts: The names in `OPTIONAL_FACTS` that the sentence mentions where the scene has them; None draws them. A
            sentence about two things never mentions place or background; place is mentioned for a single thing only.
    """
    # Drawn even where they are not used: the draws that follow stay the same.
    random_facts = [fact for fact, probability in OPTIONAL_FACTS.items() if dice.chance(probability)]
    if facts is None:
        facts = random_facts

    if scene.kind == "two":
        phrase = _pair_in_words(scene, dice, facts)
        verb = "is"
    else:
        phrase = _things_in_words(scene, facts)
        verb = "is" if scene.kind == "one" else "are"

    # A bare phrase is as likely as the two sentences together.
    frame = dice.pick(("{}", "{}", f"there {verb} {{}}", "the picture shows {}"))
    return frame.format(phrase)


def _pair_in_words(scene: Scene, dice: Dice, facts: Collection[str]) -> str:
    """Return the two things of a scene and their relation, as "a red star above a blue ring", in one of two orders."""
    a, relation, b = _related(scene, dice, 0.3)
    sized = "size" in facts
    first = _noun(a, sized)
    second = _noun(b, sized)
    return f"{first} {relation} {second}"


def _things_in_words(scene: Scene, facts: Collection[str]) -> str:
    """Return the one thing of a scene, or its things that are alike, as "two red stars on a tan background"."""
    phrase = _noun(scene.things[0], "size" in facts, len(scene.things))
    if scene.kind == "one" and "place" in facts:
        phrase += f" at the {scene.place}"
    if "background" in facts:
        phrase += f" on a {scene.background} background"
    return phrase


def captions(scene: Scene, dice: Dice, count: int) -> list[str]:
    """Return `count` captions of a scene, each with form and facts drawn by `dice`; some of them may be equal."""
    return [caption(scene, dice) for _ in range(count)]


def question(scene: Scene, kind: str, dice: Dice) -> tuple[str, str] | None:
    """Return a question about a scene and its answer, or None.

    None is returned where the scene allows no question of this type, and at random for "count" with two things in a
    relation.

    Args:
        scene: The scene.
        kind: The type of question: "color", "size", "count", "shape" or "relation".
        dice: Draws the thing that is asked about, whether two things are counted, and the order of a relation.
    """
    # Drawn for every type, even where it is not used: the draws that follow stay the same.
    thing = dice.pick(scene.things)

    if kind == "count":
        return _count_question(scene, thing, dice)
    if kind == "relation":
        return _relation_question(scene, dice)
    if kind == "shape":
        return _shape_question(scene, thing)
    return _color_or_size_question(scene, thing, kind)


def _is_only_one(scene: Scene, thing: Thing, field: str) -> bool:
    """Return whether no other thing of a scene has the same value of a field, so that the value names the thing."""
    own_value = getattr(thing, field)
    num_equal = sum(getattr(other, field) == own_value for other in scene.things)
    return num_equal == 1


def _color_or_size_question(scene: Scene, thing: Thing, kind: str) -> tuple[str, str] | None:
    """Return a question about the color or the size of a thing, which is named by its shape, and the answer."""
    answer = thing.color if kind == "color" else thing.size
    if scene.kind == "alike":
        return f"what {kind} are the {_plural(thing)}?", answer
    if _is_only_one(scene, thing, "shape"):
        return f"what {kind} is the {thing.shape}?", answer
    return None


def _shape_question(scene: Scene, thing: Thing) -> tuple[str, str] | None:
    """Return a question about the shape of a thing, which is named by its color, and the answer."""
    if scene.kind == "alike":
        return f"what shape are the {thing.color} things?", thing.shape
    if _is_only_one(scene, thing, "color"):
        return f"what shape is the {thing.color} thing?", thing.shape
    return None


def _count_question(scene: Scene, thing: Thing, dice: Dice) -> tuple[str, str] | None:
    """Return a question about how many things there are, and the answer."""
    if scene.kind != "two":
        answer = NUMBERS[len(scene.things)]
        return f"how many {_plural(thing)} are there?", answer

    # All scenes of this kind have the same answer: it is asked for less often.
    if dice.chance(0.3):
        return "how many things are there?", "two"
    return None


def _relation_question(scene: Scene, dice: Dice) -> tuple[str, str] | None:
    """Return a question about where one of two things is from the other, and the answer."""
    if scene.kind != "two":
        return None

    # The question names both things by their shapes alone, so these must differ.
    first, second = scene.things
    if first.shape == second.shape:
        return None
    a, relation, b = _related(scene, dice, 0.5)
    return f"where is the {a.shape} from the {b.shape}?", relation


def questions(
    scene: Scene, dice: Dice, kinds: tuple[str, ...] = TOLD_QUESTIONS + UNTOLD_QUESTIONS
) -> list[dict[str, str]]:
    """Return questions about a scene, at most one of each type, in the order of `kinds`.

    Args:
        scene: The scene.
        dice: Draws the things that are asked about, and whether some questions are asked at all.
        kinds: The types of questions: any of "color", "count", "size", "shape" and "relation".

    Returns:
        For each question a dict of texts: its `type`, the `question` and the `answer`.
    """
    allowed = []
    for kind in kinds:
        pair = question(scene, kind, dice)
        if pair is not None:
            text, answer = pair
            allowed.append({"type": kind, "question": text, "answer": answer})

    return allowed


def instruction(dice: Dice, held_out: bool = False) -> dict[str, str]:
    """Return an instruction that needs no picture, as "say red star again", with its one right response.

    Args:
        dice: Draws the instruction.
        held_out: Whether its pair of words is one of those, about a fifth, that are kept for tests. The pairs of other
            instructions are never among them.

    Returns:
        The texts `type`, `instruction` and `response`.
    """
    while True:
        kind = dice.pick(("repeat", "reverse", "pair"))
        one = dice.pick(_WORDS)
        two = dice.pick(_WORDS)
        if one == two or _is_held_out(one, two) != held_out:
            continue

        if kind == "repeat":
            text = f"say {one} {two} again"
            response = f"{one} {two}"
        elif kind == "reverse":
            text = f"say {one} {two} the other way round"
            response = f"{two} {one}"
        else:
            text = f"join {one} with {two}"
            response = f"{one} and {two}"
        return {"type": kind, "instruction": text, "response": response}


def _is_held_out(one: str, two: str) -> bool:
    """Return whether a pair of words is kept for tests: every fifth pair is, in either order."""
    total = _WORDS.index(one) + _WORDS.index(two)
    return total % 5 == 0


def _fact(dice: Dice) -> str:
    """Return a random sentence that is true in every scene, as "red is a color"."""
    one = dice.pick(COLORS)
    two = dice.pick(SHAPES)
    shape = dice.pick(SHAPES)
    number = 1 + int(dice.random() * 3)
    place = dice.pick(tuple(PLACES))

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
        f"the {place} is a place",
    )
    return dice.pick(facts)


def notes(scene: Scene, dice: Dice) -> str:
    """Return the facts of a scene as words in an order that `dice` draws, as "red small star top white background".

    A model that reads only sentences learns to copy a word by the word before it. Notes make the tiny LLaMA know the
    facts themselves, which is what image vectors have to give it.
    """
    if scene.kind == "two":
        a, relation, b = _related(scene, dice, 0.5)
        first = _shuffled([a.color, a.shape, a.size], dice)
        second = _shuffled([b.color, b.shape, b.size], dice)
        return f"{first} {relation} {second}"

    thing = scene.things[0]
    background = f"{scene.background} background"
    place_or_count = scene.place if scene.kind == "one" else NUMBERS[len(scene.things)]
    return _shuffled([thing.color, thing.shape, thing.size, background, place_or_count], dice)


def _shuffled(words: list[str], dice: Dice) -> str:
    return " ".join(dice.permutation(words))


def document(index: int) -> str:
    """Return one training text for the tiny LLaMA; the same `index` always returns the same text.

    Most texts describe one scene: by a paragraph; by a line and questions of `TOLD_QUESTIONS` with their answers; or,
    most often, by two lines, or one, each true of the scene. When the joined model is trained, an image stands in the
    place of the first line. A tenth of the texts are general facts instead.

    Args:
        index: Number of the text, from 0; there is no largest one.
    """
    scene, dice = scene_of("text", index)
    form = dice.random()
    if form < 0.1:
        num_facts = 1 + int(dice.random() * 4)
        return _paragraph([_fact(dice) for _ in range(num_facts)])

    first = notes(scene, dice) if dice.chance(0.6) else caption(scene, dice)

    if form < 0.35:
        num_sentences = 2 + int(dice.random() * 4)
        sentences = captions(scene, dice, num_sentences)
        return _paragraph([first, *sentences])

    if form < 0.55:
        told_questions = questions(scene, dice, TOLD_QUESTIONS)
        lines = [first]
        for pair in dice.permutation(told_questions):
            lines.append(f"question: {pair['question']} answer: {pair['answer']}")
        return "\n".join(lines)

    second = caption(scene, dice)
    # Some texts have one line alone.
    if dice.chance(0.9):
        return f"{first}\n{second}"
    return first


def _paragraph(sentences: list[str]) -> str:
    return ". ".join(sentences) + "."
