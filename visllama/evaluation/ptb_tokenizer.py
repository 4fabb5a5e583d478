"""Split captions into the tokens that caption metrics count, by Stanford's Penn Treebank tokenizer, as COCO does.

Published figures come from two token lists, which differ by points: COCO's own script drops punctuation, and some
papers keep it. A score is comparable only to scores of the same one, so each result names its `tokenizer`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pycocoevalcap.tokenizer import ptbtokenizer

from visllama.evaluation.java import run_java


def one_line(text: str) -> str:
    """Join a text's lines and fold its white space.

    The Java programs read a caption a line, so any line separator inside one (also `\\r`, U+0085, U+2028) would give
    one image the rest of another's text. `|||` separates METEOR's fields.
    """
    return " ".join(text.replace("|||", " ").split())


def tokenise(captions: Mapping[str, Sequence[str]], tokenizer: str = "ptb") -> dict[str, list[str]]:
    """Return captions by id as tokens in small letters, joined by spaces; empty ones stay empty, in their places.

    Args:
        captions: The captions of each image, by its id.
        tokenizer: `ptb` drops punctuation, as pycocoevalcap does; `ptb_keep_punctuation` keeps it.
    """
    cleaned = {key: [one_line(text) for text in texts] for key, texts in captions.items()}
    # A caption that comes often ("a man ...", a reference of several images) is tokenised once.
    different = list(dict.fromkeys(text for texts in cleaned.values() for text in texts if text))
    tokens = dict(zip(different, _tokens_of_lines(different, tokenizer == "ptb_keep_punctuation"), strict=True))
    tokens[""] = ""
    return {key: [tokens[text] for text in texts] for key, texts in cleaned.items()}


def _tokens_of_lines(lines: Sequence[str], keeps_punctuation: bool) -> list[str]:
    if not lines:
        return []
    program = Path(ptbtokenizer.__file__).parent
    jar = ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR
    arguments = ["-cp", jar, "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
    tokenised = run_java(program, "512m", arguments, lines)
    if len(tokenised) != len(lines):
        raise RuntimeError(f"the PTB tokenizer gave {len(tokenised)} lines for {len(lines)} captions")
    dropped = frozenset() if keeps_punctuation else frozenset(ptbtokenizer.PUNCTUATIONS)
    return [" ".join(token for token in line.split(" ") if token and token not in dropped) for line in tokenised]
