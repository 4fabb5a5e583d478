"""LLaVA's rules for ids and labels of the Vicuna template, written anew: what ours are compared with.

The rules are those of preprocess_multimodal, tokenizer_image_token and preprocess_v1 in haotian-liu/LLaVA (May 2024),
for a SentencePiece tokenizer in the legacy form, which writes a space before a text behind a special token too.
"""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

IGNORED, IMAGE_ID, IMAGE = -100, -200, "<image>"
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
_ROLES = {"human": "USER", "gpt": "ASSISTANT"}
_END, _ANSWERS = "</s>", " ASSISTANT: "


def vicuna_text(conversation: list[dict[str, str]]) -> str:
    """Write a conversation as one string, images in it as `<image>`.

    Where there is an image, it stands first in its turn, alone in its line, and what else the turn says is stripped.
    The other turns are left as they are.
    """
    turns = conversation[conversation[0]["from"] != "human" :]
    assert [turn["from"] for turn in turns] == [("human", "gpt")[i % 2] for i in range(len(turns))], "no turns by turns"
    text = f"{SYSTEM} "
    for turn in turns:
        said, role = turn["value"], _ROLES[turn["from"]]
        if IMAGE in said:
            said = f"{IMAGE}\n{said.replace(IMAGE, '').strip()}".strip()
        closing = _END if role == "ASSISTANT" else " "
        text += f"{role}: {said}{closing}" if said else f"{role}:"
    return text


def image_ids(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokenise each stretch between images by itself, and put `IMAGE_ID` for each image; one BOS stands before all."""
    ids = [tokenizer.bos_token_id]
    for number, stretch in enumerate(text.split(IMAGE)):
        its_bos, *words = tokenizer(stretch)["input_ids"]
        assert its_bos == tokenizer.bos_token_id, "a tokenizer that adds no BOS"
        ids += [IMAGE_ID] * (number > 0) + words
    return ids


def vicuna_labels(
    conversation: list[dict[str, str]], tokenizer: PreTrainedTokenizerBase
) -> tuple[list[int], list[int]]:
    """Return ids (-200 is an image) and labels (-100 is not learned), not shifted.

    A round runs from one end token to the next. Its length is counted by tokenising it alone: the BOS that this adds
    makes up for the end token that it lacks. Of its prompt, tokenised up to the space before the answer, two tokens are
    not counted: the BOS, and that space, which in the whole text is the first answered word's own (or, where no word
    takes it, is learned). A count that does not come out right leaves nothing to learn in the whole conversation.
    """
    text = vicuna_text(conversation)
    ids = image_ids(text, tokenizer)
    labels = [IGNORED] * len(ids)
    start = 1  # behind the BOS
    for around in text.split(_END):
        prompt, *answers = around.split(_ANSWERS)
        if len(answers) != 1:  # nothing behind the last end token, or an answer with the next one in it
            break
        end = start + len(image_ids(around, tokenizer))
        answer = start + len(image_ids(prompt + _ANSWERS, tokenizer)) - 2
        labels[answer:end] = ids[answer:end]
        start = end
    if start != sum(
        i != tokenizer.unk_token_id for i in ids
    ):  # theirs pads with the unknown token, and counts the rest
        labels = [IGNORED] * len(ids)
    return ids, [IGNORED if label == IMAGE_ID else label for label in labels]


def _talk(*said: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(said)]


# Left out, since there the rules above leave nothing to learn: " ASSISTANT: " with both spaces or "</s>" in what is
# said, an empty answer, a human's turn at the end. "USER:" and other spellings of "ASSISTANT:" do no harm.
HAND_MADE: list[list[dict[str, str]]] = [
    # One turn, the image first.
    _talk("<image>\nWhat is this?", "A dog."),
    _talk("<image>\nWhat colour is the ball?", "Red"),
    _talk("<image>\nHow many dogs are there?", "3"),
    _talk("<image>\nHow many windows has the house?", "12 windows, 4 of them open."),
    _talk("<image>\nIs it raining?", "yes"),
    _talk("<image>\nIs it raining?\nAnswer the question using a single word or phrase.", "No"),
    _talk("<image>\nDescribe the picture.", "A red ball lies beside the water, and a black dog looks at it."),
    _talk("<image>\nWho is on the left?", "The woman in the blue coat."),
    _talk("<image>\nWhat does the sign say?", '"STOP"'),
    _talk("<image>\nWhat does the sign say?", "50 km/h"),
    _talk("<image>\nGive the box of the cat.", "[0.12, 0.30, 0.58, 0.91]"),
    _talk("<image>\nWhat is the price?", "€4.50"),
    _talk("<image>\nWhat is the price?", "$4.50 (was $6.00)"),
    _talk("<image>", "A street at night."),
    _talk("<image>\n", "Two people at a table."),
    # The image elsewhere in its turn, spaces around it, several of them.
    _talk("What is this?\n<image>", "A bicycle."),
    _talk("What is this? <image>", "A bicycle."),
    _talk("Look at <image> and say what it is.", "It is a cup."),
    _talk("  <image>  \n  What is this?  ", "A tree."),
    _talk("<image>What is this?", "A tree."),
    _talk("<image>\n\n\nWhat is this?", "A tree."),
    _talk("<image><image>\nWhat differs?", "Nothing does."),
    # No image.
    _talk("What is the capital of France?", "Paris."),
    _talk("Add 2 and 40.", "42"),
    _talk("Write a line of Python that prints hello.", "print('hello')"),
    _talk("Write a function.", "def area(width, height):\n    return width * height"),
    _talk("Name three colours.", "1. red\n2. green\n3. blue"),
    _talk("Name three colours.", "- red\n- green\n- blue\n"),
    _talk("Hi", "Hello!"),
    _talk("?", "!"),
    _talk("a", "b"),
    _talk("Is 7 a prime number?", "Yes, 7 is a prime number: only 1 and 7 divide it."),
    _talk("Say nothing of importance.", "..."),
    _talk("Translate 'cat' to German.", "Die Katze"),
    _talk("I have  two  spaces.", "So  have   I."),
    _talk("What is a tab?", "It is\tthis."),
    _talk("<div> is what?", "<div> is a tag of HTML, as <p> is."),
    _talk("What is in a URL?", "https://example.org/a/b?c=1&d=2#e"),
    # Letters beyond ASCII, and emoji.
    _talk("Où est le café?", "À côté de l'école."),
    _talk("你好吗?", "我很好。"),
    _talk("Как дела?", "Хорошо, спасибо!"),
    _talk("<image>\nWhich feeling is this?", "😀"),
    _talk("<image>\nWhich animals? 🐶", "🐶🐱 and one more: 🦊"),
    _talk("<image>\nWhat is written there?", "東京タワー"),
    _talk("Zürich?", "Zürich, naïve — “quoted” … ½"),
    _talk("Give a family.", "👩‍👩‍👧‍👦"),
    # What an answer begins and ends with.
    _talk("<image>\nWhat is this?", " a dog"),
    _talk("<image>\nWhat is this?", "a dog "),
    _talk("<image>\nWhat is this?", "\nA dog."),
    _talk("<image>\nWhat is this?", "(a dog)"),
    _talk("<image>\nWhat is this?", "**A dog**"),
    _talk("<image>\nWhat is this?", "A dog.\n"),
    _talk("Which role has admin?", "The label says USER: admin, and USER is a role."),
    _talk("Which role am I?", "ASSISTANT: is what stands before what I say."),
    # Several turns.
    _talk("<image>\nWhat is this?", "A dog.", "Which colour has it?", "Black."),
    _talk("<image>\nHow many cats?", "2", "And dogs?", "0", "And cars?", "11"),
    _talk(
        "<image>\nDescribe it.", "A man rides a horse.", "Where?", "On the street.", "When?", "At night.", "Why?", "😀"
    ),
    _talk("Hello", "Hi! How can I help?", "Tell me a joke.", "Why did the cube cross the road?\nTo be square."),
    _talk("Hello", "Hi!", "<image>\nWhat is this?", "A cup on a table."),
    _talk("<image>\nWhat is this?", "A cup.", "And this?\n<image>", "A plate."),
    _talk("Add 1.", "1", "Add 2.", "3", "Add 3.", "6", "Add 4.", "10", "Add 5.", "15", "Add 6.", "21"),
    _talk("First?", " yes", "Second?", "no ", "Third?", "\n"),
    # Long ones, and one that the assistant opens.
    _talk("<image>\n" + "Say what you see. " * 40, "I see a green car in the park. " * 60),
    [{"from": "gpt", "value": "How can I help?"}, *_talk("<image>\nWhat is this?", "A ball.", "Sure?", "Yes.")],
]
