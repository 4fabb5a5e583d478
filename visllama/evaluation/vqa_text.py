"""The official normalisation of VQA answers, with its quirks: they are part of the number that papers print.

Reference:
    Antol et al. 2015, arXiv:1505.00468, section 3; `vqaEval.py` of github.com/GT-Vision-Lab/VQA.
"""

from __future__ import annotations

import re
from functools import lru_cache

_MARKS = ';/[]"{}()=+\\_-><@`,?!'
"""Punctuation, in the official order; a period, an apostrophe and a colon are not in it."""
_DIGITS = {"zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7",
           "eight": "8", "nine": "9", "ten": "10", "none": "0"}  # fmt: skip
_ARTICLES = ("a", "an", "the")
_SPELLINGS = """
    'ow's'at 'twas ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't
    he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't
    needn't not've o'clock oughtn't shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll
    somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd
    there'd've there're there's they'd they'd've they'll they're they've wasn't we'd've we've weren't what'll what're
    what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
    wouldn't wouldn't've y'all y'all'd've y'all'll you'd you'd've you'll you're you've
"""
_CONTRACTIONS = {"somebody'd": "somebodyd"} | {
    word[:place] + word[place + 1 :]: word
    for word in _SPELLINGS.split() for place, letter in enumerate(word) if letter == "'"
}  # fmt: skip
"""Each spelling lacking one apostrophe -> whole, and the official table's slip. "lets" and "shes" are not in it;
its forms with a capital I match nothing, since texts are in small letters by then."""
_COMMA_IN_NUMBER = re.compile("[0-9],[0-9]")
_PERIOD = re.compile(r"\.(?![0-9])")
_MOST_PERIODS = 32
"""The official script hands a flag of this value over where the number of substitutions stands."""


def clean(text: str) -> str:
    """Make a line of a text, as is done to every answer, also where nothing is normalised."""
    return text.replace("\n", " ").replace("\t", " ").strip()


@lru_cache(1 << 16)  # few answers are not given many times
def normalise(text: str) -> str:
    """Normalise an answer: punctuation, numbers up to ten, articles, contractions.

    A mark goes without a trace where it stands beside a space somewhere in the text, or where a comma stands between
    digits; else a space takes its place. "none" becomes "0"; the answer "A" becomes empty.
    """
    text = clean(text)
    has_long_number = _COMMA_IN_NUMBER.search(text) is not None
    marked = text
    for mark in _MARKS:
        leaves_no_trace = has_long_number or f"{mark} " in text or f" {mark}" in text
        marked = marked.replace(mark, "" if leaves_no_trace else " ")
    words = _PERIOD.sub("", marked, count=_MOST_PERIODS).lower().split()
    numbered = (_DIGITS.get(word, word) for word in words)
    return " ".join(_CONTRACTIONS.get(word, word) for word in numbered if word not in _ARTICLES)
