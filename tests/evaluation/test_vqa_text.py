"""The official normalisation of VQA answers, quirk by quirk."""

from __future__ import annotations

import pytest

from visllama.evaluation.vqa_text import normalise

NORMALISED = [
    ("", ""), ("yes", "yes"), ("YES", "yes"), ("Hot Dog", "hot dog"), ("  two   dogs ", "2 dogs"),
    ("a dog", "dog"), ("an apple", "apple"), ("The dog on the mat", "dog on mat"), ("A", ""), ("a", ""), ("theatre", "theatre"),
    ("none", "0"), ("None.", "0"), ("zero", "0"), ("One", "1"), ("ten", "10"), ("eleven", "eleven"), ("two-three", "2 3"), ("someone", "someone"),
    ("dont", "don't"), ("don't", "don't"), ("DONT KNOW", "don't know"), ("couldntve", "couldntve"), ("couldnt've", "couldn't've"),
    ("couldn'tve", "couldn't've"), ("it's", "it's"), ("its", "its"), ("lets", "lets"), ("shes", "shes"), ("hes", "he's"),
    ("somebody'd", "somebodyd"), ("somebodyd", "somebodyd"), ("somebodyd've", "somebody'd've"), ("Im", "im"), ("I'm", "i'm"), ("Ive", "ive"),
    ("oclock", "o'clock"), ("twas", "'twas"), ("ows'at", "ows'at"), ("'ows'at", "'ow's'at"), ("yall'd've", "y'all'd've"),
    ("yes!", "yes"), ("yes , no", "yes no"), ("yes, no", "yes no"), ("yes,no", "yes no"), ("dog/cat", "dog cat"), ("dog /cat", "dog cat"),
    ("t-shirt", "t shirt"), ("t- shirt", "t shirt"), ("t-shirt - red", "tshirt red"), ("(left)", "left"), ("left(side)", "left side"), ("x(]y(z", "x y z"),
    ('"stop"', "stop"), ("what?why", "what why"), ("what?why? ", "what why"), ("what?why? no", "whatwhy no"), ("snow_board", "snow board"), ("a-b", "b"),
    ("1,000", "1000"), ("1,000,000", "1000000"), ("1, 2", "1 2"), ("1,000-2", "10002"), ("a,1", "1"), ("1,000 and t-shirt", "1000 and tshirt"),
    ("1.5", "1.5"), ("5.", "5"), (".5", ".5"), ("end.", "end"), ("p.m.", "pm"), ("v1.a", "v1a"), ("3.30 p.m.", "3.30 pm"), ("..", ""), ("a.", ""), ("a.b", "ab"),
    ("10:30", "10:30"), ("$4.50", "$4.50"), ("50%", "50%"), ("rock & roll", "rock & roll"),
    ("yes\nno", "yes no"), ("yes\tno", "yes no"), ("\n", ""), ("the\ndog\n", "dog"), ("left-\nright", "left right"),
    ("🐶", "🐶"), ("🐶!🐱", "🐶 🐱"), ("Äpfel", "äpfel"), ("?", ""), ("'", "'"), ("." * 33, "."), ("." * 32, ""),
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), NORMALISED)
def test_normalise(text, expected):
    assert normalise(text) == expected


def test_normalisation_cases_are_many():
    assert len({text for text, _ in NORMALISED}) == len(NORMALISED) >= 80
