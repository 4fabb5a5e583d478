"""How an evaluation was judged: scores that were made under other conditions are not compared by mistake."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence

from visllama.console import printable
from visllama.errors import ConfigError
from visllama.evaluation.metrics_file import is_number, mapping

# What decides over the scores of every task, and what does so only where captions are scored.
_ALWAYS = ("task", "split", "prompt", "decoding")
_OF_CAPTIONS = ("tokenizer", "document_frequencies")
NUM_RECORDS = "n"
_UNKNOWN = "not known"
_MOST_CHARACTERS = 60
Conditions = Mapping[str, object]
"""The value of each condition that an evaluation was judged under, by its name."""
Differences = dict[str, dict[str, str]]
"""The conditions that are not the same in all runs, with the value of each run in words."""


def conditions(evaluation: Mapping) -> dict[str, object]:
    """Return what two evaluations have to share before their scores are compared.

    Args:
        evaluation: An evaluation of a `metrics.json`.
    """
    by_name: dict[str, object] = {name: evaluation.get(name) for name in _ALWAYS}
    if "prompt" not in evaluation:
        # Evaluations that answer questions call it so.
        by_name["prompt"] = evaluation.get("hint")

    # The ids of special tokens are no part of a decoding: another language model has others.
    decoding = mapping(evaluation, "decoding")
    options = {key: value for key, value in decoding.items() if not key.endswith("_token_id")}
    by_name["decoding"] = options or None

    if evaluation.get("task") == "caption":
        for name in _OF_CAPTIONS:
            by_name[name] = evaluation.get(name)
    return by_name


def differences(judged: Mapping[str, Conditions]) -> Differences:
    """Return the conditions that are not the same in all runs, with the value of each run in words.

    Args:
        judged: The conditions of each run, by its name.
    """
    names = dict.fromkeys(name for of_run in judged.values() for name in of_run)

    differing: Differences = {}
    for name in names:
        values = {run: of_run.get(name) for run, of_run in judged.items()}
        if _has_difference(values.values()):
            differing[name] = _in_words(values)
    return differing


def _has_difference(values: Iterable[object]) -> bool:
    # As JSON, because dictionaries cannot stand in a set.
    return len({json.dumps(value, sort_keys=True) for value in values}) > 1


def _in_words(values: Mapping[str, object]) -> dict[str, str]:
    """Return values as texts. If all are mappings, as decodings are, only the keys that differ are written."""
    # A decoding has a dozen options: only those that differ help to see what was done otherwise.
    mappings = {run: value for run, value in values.items() if isinstance(value, Mapping)}
    if len(mappings) < len(values):
        return {run: short(value) for run, value in values.items()}

    keys = dict.fromkeys(key for options in mappings.values() for key in options)
    differing = []
    for key in keys:
        written = {json.dumps(options.get(key)) for options in mappings.values()}
        if len(written) > 1:
            differing.append(key)

    texts = {}
    for run, options in mappings.items():
        parts = [f"{printable(key)}={short(options.get(key))}" for key in differing]
        texts[run] = ", ".join(parts)
    return texts


def short(value: object) -> str:
    """Return a condition's value as a short text."""
    # Files of older runs lack some conditions.
    if value is None:
        return _UNKNOWN
    if isinstance(value, Mapping):
        return decoding_in_words(value)

    text = printable(value) or "none"
    if len(text) <= _MOST_CHARACTERS:
        return text
    return f"{text[:_MOST_CHARACTERS]}..."


def decoding_in_words(decoding: Mapping) -> str:
    """Return a decoding in some words, for example "greedy, at most 40 tokens"."""
    words = []
    # The file may be somebody else's: only numbers are taken as numbers.
    beams = decoding.get("num_beams")
    if decoding.get("do_sample"):
        words.append("sampled")
    elif is_number(beams):
        words.append("greedy" if beams == 1 else f"{beams} beams")

    if is_number(decoding.get("max_new_tokens")):
        words.append(f"at most {decoding['max_new_tokens']} tokens")
    return ", ".join(words) or _UNKNOWN


def check_alike(evaluation: str, judged: Mapping[str, Conditions], mixed: bool) -> Differences:
    """Refuse runs that were judged under different conditions, unless that is asked for.

    Args:
        evaluation: The name of the evaluation, for the message.
        judged: The conditions of each run, by its name.
        mixed: Whether they are compared all the same.

    Returns:
        The conditions that differ, as `differences` returns them; empty unless `mixed`.

    Raises:
        ConfigError: If a condition differs and `mixed` is false. The message names each such condition and two of its
            values.
    """
    differing = differences(judged)
    if differing and not mixed:
        parts = [f"{name}: {_two_values(values)}" for name, values in differing.items()]
        raise ConfigError(
            f"runs: {evaluation}: they were not judged alike ({'; '.join(parts)}): judge them again alike by visllama "
            f"evaluate, leave some out, or compare them all the same by mixed=true"
        )
    return differing


def _two_values(values: Mapping[str, str]) -> str:
    """Return the first two values that differ, each with the run that has it."""
    (run, value), *others = values.items()
    other_run, other = next(entry for entry in others if entry[1] != value)
    return f"{value} in {run}, {other} in {other_run}"


def shared_text(name: str, judged: Sequence[Conditions]) -> str:
    """Return a condition in words where all runs share it; "" where they do not, or it is not known."""
    values = {short(of_run.get(name)) for of_run in judged}
    if len(values) != 1 or values == {_UNKNOWN}:
        return ""
    return values.pop()
