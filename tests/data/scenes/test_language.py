from visllama.data.scenes.language import TOLD_QUESTIONS, UNTOLD_QUESTIONS, caption, document, instruction, questions
from visllama.data.scenes.world import Dice, Scene, Thing

RING, STAR = Thing("orange", "ring", "small", (0, 1)), Thing("blue", "star", "large", (2, 1))


def test_captions_say_what_is_there():
    assert caption(Scene((RING,), "tan"), Dice(0), ("size", "place", "background")).endswith(
        "a small orange ring at the top on a tan background"
    )
    assert caption(Scene((RING,), "tan"), Dice(0), ()).endswith("an orange ring")
    two = {caption(Scene((RING, STAR), "tan"), Dice(i), ()) for i in range(40)}
    assert {"an orange ring above a blue star", "a blue star below an orange ring"} <= two
    alike = (RING, Thing("orange", "ring", "small", (0, 2)))
    assert caption(Scene(alike, "pink"), Dice(0), ("size",)).endswith("two small orange rings")


def test_answers_are_true():
    asked = {q["type"]: q for seed in range(9) for q in questions(Scene((RING, STAR), "tan"), Dice(seed))}
    assert set(asked) == set(TOLD_QUESTIONS + UNTOLD_QUESTIONS)
    assert asked["count"]["answer"] == "two"
    where = asked["relation"]
    assert where["answer"] == ("above" if where["question"].startswith("where is the ring") else "below")
    by_shape = {"ring": RING, "star": STAR}
    assert asked["color"]["answer"] == by_shape[asked["color"]["question"].rstrip("?").split()[-1]].color


def test_no_question_is_ambiguous():
    twins = Scene((RING, Thing("blue", "ring", "large", (0, 2))), "tan")
    assert not {q["type"] for seed in range(20) for q in questions(twins, Dice(seed))} & {"color", "size", "relation"}


def test_the_llama_is_never_asked_of_untold_things():
    text = "\n".join(document(i) for i in range(3000))
    assert "question: what color" in text and "question: how many" in text
    assert not any(phrase in text for phrase in ("what size", "what shape", "where is"))
    assert "small" in text and "left of" in text, "but it reads of them"


def test_held_out_instructions_share_no_wording():
    dice = Dice(0)
    taught = {instruction(dice)["instruction"] for _ in range(2000)}
    held_out = {instruction(dice, held_out=True)["instruction"] for _ in range(500)}
    assert not taught & held_out
    assert instruction(Dice(3))["response"].split()
