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
_CORNERS = {"triangle": "three", "square": "four", "circle": "no", "ring": "no", "star": "ten", "cross": "twelve"}


def _noun(thing: Thing, sized: bool, count: int = 1) -> str:
    """Return a thing in words, or several that are alike, as "a small red star" or "two red stars"."""
    adjectives = [thing.size, thing.color] if sized else [thing.color]
    if count == 1:
        article = "an" if adjectives[0] == "orange" else "a"
        return " ".join([article, *adjectives, thing.shape])
    return " ".join([NUMBERS[count], *adjectives, _plural(thing)])


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
        dice: Draws the form of the sentence.
        facts: The names in `OPTIONAL_FACTS` that the sentence states, as far as this kind of scene allows; None draws
            them at random. The sentence about two things in a relation states no place and no background, and only the
            sentence about a single thing states a place.
    """
    # Drawn even where they are not used: the draws that follow stay the same.
    random_facts = [fact for fact, probability in OPTIONAL_FACTS.items() if dice.chance(probability)]
    if facts is None:
        facts = random_facts
    sized = "size" in facts

    if scene.kind == "two":
        a, relation, b = _related(scene, dice, 0.3)
        sentence = f"{_noun(a, sized)} {relation} {_noun(b, sized)}"
        frame = dice.pick(("{}", "{}", "there is {}", "the picture shows {}"))
        return frame.format(sentence)

    sentence = _noun(scene.things[0], sized, len(scene.things))
    if scene.kind == "one" and "place" in facts:
        sentence += f" at the {scene.place}"
    if "background" in facts:
        sentence += f" on a {scene.background} background"
    verb = "is" if scene.kind == "one" else "are"
    frame = dice.pick(("{}", "{}", f"there {verb} {{}}", "the picture shows {}"))
    return frame.format(sentence)


def captions(scene: Scene, dice: Dice, count: int) -> list[str]:
    """Return `count` random captions of a scene, drawn by `dice`, with random facts each; some may be equal."""
    return [caption(scene, dice) for _ in range(count)]


def question(scene: Scene, kind: str, dice: Dice) -> tuple[str, str] | None:
    """Return a question about a scene and its answer, or None.

    None is returned where the scene allows no question of this type, and at random for "count" with two things in a
    relation.

    Args:
        scene: The scene.
        kind: The type of question: "color", "size", "count", "shape" or "relation"; any other acts as "relation".
        dice: Draws the thing that is asked about.
    """
    # Drawn for every type, even where it is not used: the draws that follow stay the same.
    thing = dice.pick(scene.things)
    shapes = [other.shape for other in scene.things]
    colors = [other.color for other in scene.things]
    # A question names a thing by its shape or its color, which no other thing of the scene may have.
    has_own_shape = scene.kind == "one" or shapes.count(thing.shape) == 1
    has_own_color = scene.kind == "one" or colors.count(thing.color) == 1

    if kind in ("color", "size"):
        answer = thing.color if kind == "color" else thing.size
        if scene.kind == "alike":
            return f"what {kind} are the {_plural(thing)}?", answer
        if has_own_shape:
            return f"what {kind} is the {thing.shape}?", answer
        return None

    if kind == "count":
        if scene.kind != "two":
            return f"how many {_plural(thing)} are there?", NUMBERS[len(scene.things)]
        # All scenes of this kind have the same answer: it is asked for less often.
        if dice.chance(0.3):
            return "how many things are there?", "two"
        return None

    if kind == "shape":
        if scene.kind == "alike":
            return f"what shape are the {thing.color} things?", thing.shape
        if has_own_color:
            return f"what shape is the {thing.color} thing?", thing.shape
        return None

    # A relation is told by the two shapes alone, so they must differ.
    if scene.kind != "two" or shapes[0] == shapes[1]:
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
    words = COLORS + SHAPES + SIZES
    while True:
        kind = dice.pick(("repeat", "reverse", "pair"))
        one = dice.pick(words)
        two = dice.pick(words)
        # Every fifth pair of words is held out, in either order.
        is_held_out_pair = (words.index(one) + words.index(two)) % 5 == 0
        if one == two or is_held_out_pair != held_out:
            continue

        if kind == "repeat":
            return {"type": kind, "instruction": f"say {one} {two} again", "response": f"{one} {two}"}
        if kind == "reverse":
            return {"type": kind, "instruction": f"say {one} {two} the other way round", "response": f"{two} {one}"}
        return {"type": kind, "instruction": f"join {one} with {two}", "response": f"{one} and {two}"}


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
        first = " ".join(dice.permutation([a.color, a.shape, a.size]))
        second = " ".join(dice.permutation([b.color, b.shape, b.size]))
        return f"{first} {relation} {second}"

    thing = scene.things[0]
    place_or_count = scene.place if scene.kind == "one" else NUMBERS[len(scene.things)]
    facts = [thing.color, thing.shape, thing.size, f"{scene.background} background", place_or_count]
    return " ".join(dice.permutation(facts))


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
        facts = [_fact(dice) for _ in range(num_facts)]
        return ". ".join(facts) + "."

    first = notes(scene, dice) if dice.chance(0.6) else caption(scene, dice)
    if form < 0.35:
        num_sentences = 2 + int(dice.random() * 4)
        sentences = [caption(scene, dice) for _ in range(num_sentences)]
        return ". ".join([first, *sentences]) + "."

    if form < 0.55:
        asked = dice.permutation(questions(scene, dice, TOLD_QUESTIONS))
        lines = [f"question: {pair['question']} answer: {pair['answer']}" for pair in asked]
        return "\n".join([first, *lines])

    second = caption(scene, dice)
    # Some texts have one line alone.
    if dice.chance(0.9):
        return f"{first}\n{second}"
    return first
