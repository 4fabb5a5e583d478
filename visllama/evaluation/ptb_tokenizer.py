"""Split captions into the tokens that metrics compare, by Stanford's Penn Treebank (PTB) tokenizer, as COCO does.

Published figures come from two token lists, which differ by points: COCO's own script drops punctuation, and some
papers keep it. A score is comparable only to scores of the same one, so each result names its `tokenizer`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pycocoevalcap.tokenizer import ptbtokenizer

from visllama.evaluation.java import run_java


def one_line(text: str) -> str:
    """Return a text on one line, with single spaces between its words.

    The Java programs read one caption from each line, so any line separator inside a caption (also `\\r`, U+0085,
    U+2028) would give one image the rest of another's text. `|||` becomes a space, since it separates METEOR's fields.
    """
    words = text.replace("|||", " ").split()
    return " ".join(words)


def tokenise(captions: Mapping[str, Sequence[str]], tokenizer: str = "ptb") -> dict[str, list[str]]:
    """Split captions into tokens by a Java program, and return each caption as its tokens joined by single spaces.

    Tokens are in small letters. The images and the captions of each image stay in their order, and an empty caption
    stays empty in its place.

    Args:
        captions: The captions of each image, by the image's id.
        tokenizer: `ptb_keep_punctuation` keeps tokens of punctuation. `ptb`, and any other text, drops them, as
            pycocoevalcap does.

    Raises:
        RuntimeError: If the Java program fails, or prints more or fewer lines than it was sent.
    """
    cleaned: dict[str, list[str]] = {}
    for key, texts in captions.items():
        cleaned[key] = [one_line(text) for text in texts]

    # Many captions come several times ("a man ..."); each is sent to the Java program once.
    unique_texts: dict[str, None] = {}
    for texts in cleaned.values():
        unique_texts.update(dict.fromkeys(texts))
    unique_texts.pop("", None)

    lines = list(unique_texts)
    tokenised_lines = _tokens_of_lines(lines, tokenizer == "ptb_keep_punctuation")
    tokens = dict(zip(lines, tokenised_lines, strict=True))
    tokens[""] = ""

    tokenised: dict[str, list[str]] = {}
    for key, texts in cleaned.items():
        tokenised[key] = [tokens[text] for text in texts]
    return tokenised


def _tokens_of_lines(lines: Sequence[str], keeps_punctuation: bool) -> list[str]:
    """Return the tokens of each line, joined by single spaces, in the order of the lines."""
    # Java takes a while to start, also to read nothing.
    if not lines:
        return []

    folder = Path(ptbtokenizer.__file__).parent
    jar = ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR
    arguments = ["-cp", jar, "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
    printed = run_java(folder, "512m", arguments, lines)
    if len(printed) != len(lines):
        raise RuntimeError(f"the PTB tokenizer gave {len(printed)} lines for {len(lines)} captions")

    dropped: frozenset[str] = frozenset()
    if not keeps_punctuation:
        dropped = frozenset(ptbtokenizer.PUNCTUATIONS)

    tokenised = []
    for line in printed:
        kept = [token for token in line.split(" ") if token and token not in dropped]
        tokenised.append(" ".join(kept))
    return tokenised
