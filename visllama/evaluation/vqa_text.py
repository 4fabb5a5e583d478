"""The official normalisation of VQA answers, with its quirks: they are part of the number that papers print.

Reference:
    Antol et al. 2015, arXiv:1505.00468, section 3; `vqaEval.py` of github.com/GT-Vision-Lab/VQA.
"""

from __future__ import annotations

import re
from functools import lru_cache

_MARKS = ';/[]"{}()=+\\_-><@`,?!'
"""Punctuation, in the official order; a period, an apostrophe and a colon are not in it."""
_DIGITS = {
    "zero": "0",
    "one": "1",
    "two": "2",
    "three": "3",
    "four": "4",
    "five": "5",
    "six": "6",
    "seven": "7",
    "eight": "8",
    "nine": "9",
    "ten": "10",
    # The official table has this one too.
    "none": "0",
}
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


def _contractions() -> dict[str, str]:
    """Return the official table: each spelling that lacks one apostrophe, with the whole spelling.

    "lets" and "shes" are not in the table. Its forms with a capital I are left out here: they match nothing, since
    texts are in small letters by then.
    """
    # A slip of the official table, which is part of the published numbers.
    table = {"somebody'd": "somebodyd"}
    for word in _SPELLINGS.split():
        for place, letter in enumerate(word):
            if letter == "'":
                lacking = word[:place] + word[place + 1 :]
                table[lacking] = word
    return table


_CONTRACTIONS = _contractions()
_COMMA_IN_NUMBER = re.compile("[0-9],[0-9]")
_PERIOD = re.compile(r"\.(?![0-9])")
_MOST_PERIODS = 32
"""The most periods that are removed: the official script passes a flag of this value as the number of substitutions."""


def clean(text: str) -> str:
    """Return a text with a space in place of each line break and tab, and without spaces around it.

    VQA does this to every answer, also to answers that are not normalised.
    """
    return text.replace("\n", " ").replace("\t", " ").strip()


# Most answers are given many times, so that nearly every call is answered from the cache.
@lru_cache(1 << 16)
def normalise(text: str) -> str:
    """Return an answer in the form in which VQA compares answers: in small letters, with single spaces between words.

    Punctuation and articles are removed, numbers from "zero" to "ten" become digits, and contractions get their
    apostrophe ("dont" becomes "don't"). A punctuation mark is removed without a trace if it stands beside a space
    anywhere in the text, or if the text has a comma between digits; otherwise a space takes its place. "none" becomes
    "0", and the answer "A" becomes empty.
    """
    text = clean(text)
    has_long_number = _COMMA_IN_NUMBER.search(text) is not None

    # The official script looks for a mark in the text as it was, and replaces it in the text as it has become.
    replaced = text
    for mark in _MARKS:
        leaves_no_trace = has_long_number or f"{mark} " in text or f" {mark}" in text
        replaced = replaced.replace(mark, "" if leaves_no_trace else " ")
    without_periods = _PERIOD.sub("", replaced, count=_MOST_PERIODS)

    words = []
    for word in without_periods.lower().split():
        number_or_word = _DIGITS.get(word, word)
        if number_or_word not in _ARTICLES:
            words.append(_CONTRACTIONS.get(number_or_word, number_or_word))
    return " ".join(words)
