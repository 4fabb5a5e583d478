"""How an evaluation was judged: scores that were made under other conditions are not compared by mistake."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from visllama.console import printable
from visllama.errors import ConfigError
from visllama.evaluation.metrics_file import is_number, mapping

_ALWAYS = ("task", "split", "prompt", "decoding")
_OF_CAPTIONS = ("tokenizer", "document_frequencies")
NUM_RECORDS = "n"
_UNKNOWN = "not known"
_MOST_CHARACTERS = 60


def conditions(evaluation: Mapping) -> dict[str, object]:
    """Return what two evaluations have to share before their scores are compared.

    The ids of a tokenizer's special tokens are no part of a decoding: another language model has others.

    Args:
        evaluation: An evaluation of a `metrics.json`.
    """
    found: dict[str, object] = {name: evaluation.get(name) for name in _ALWAYS}
    if "prompt" not in evaluation:
        found["prompt"] = evaluation.get("hint")  # so it is called where questions are answered
    decoding = mapping(evaluation, "decoding")
    found["decoding"] = {key: value for key, value in decoding.items() if not key.endswith("_token_id")} or None
    if evaluation.get("task") == "caption":
        for name in _OF_CAPTIONS:
            found[name] = evaluation.get(name)
    return found


def differences(judged: Mapping[str, Mapping[str, object]]) -> dict[str, dict[str, str]]:
    """Return the conditions that are not the same in all runs, and what each is in each run, in words.

    Args:
        judged: The conditions of each run, by its name.
    """
    names = dict.fromkeys(name for one in judged.values() for name in one)
    found: dict[str, dict[str, str]] = {}
    for name in names:
        values = {run: one.get(name) for run, one in judged.items()}
        written = {json.dumps(value, sort_keys=True) for value in values.values()}
        if len(written) > 1:
            found[name] = _in_words(values)
    return found


def _in_words(values: Mapping[str, object]) -> dict[str, str]:
    """Return values as texts; of mappings, as decodings are, the keys alone that differ."""
    if not all(isinstance(value, Mapping) for value in values.values()):
        return {run: short(value) for run, value in values.items()}
    keys = dict.fromkeys(key for value in values.values() for key in value)
    differing = [key for key in keys if len({json.dumps(value.get(key)) for value in values.values()}) > 1]
    return {
        run: ", ".join(f"{printable(key)}={short(value.get(key))}" for key in differing)
        for run, value in values.items()
    }


def short(value: object) -> str:
    """Return a condition's value as a short text."""
    if value is None:
        return _UNKNOWN
    if isinstance(value, Mapping):
        return decoding_in_words(value)
    text = printable(value) or "none"
    return text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]}..."


def decoding_in_words(decoding: Mapping) -> str:
    """Return a decoding in some words: "greedy, at most 40 tokens"."""
    words = []
    beams = decoding.get("num_beams")
    if decoding.get("do_sample"):
        words.append("sampled")
    elif is_number(beams):
        words.append("greedy" if beams == 1 else f"{beams} beams")
    if is_number(decoding.get("max_new_tokens")):
        words.append(f"at most {decoding['max_new_tokens']} tokens")
    return ", ".join(words) or _UNKNOWN


def check_alike(evaluation: str, judged: Mapping[str, Mapping[str, object]], mixed: bool) -> dict[str, dict[str, str]]:
    """Refuse runs that were judged otherwise, unless that is asked for.

    Args:
        evaluation: The name of the evaluation, for the message.
        judged: The conditions of each run, by its name.
        mixed: Whether they are compared all the same.

    Returns:
        What differs, as `differences` returns it; nothing unless `mixed`.

    Raises:
        ConfigError: Naming each condition that differs, and two of its values.
    """
    found = differences(judged)
    if found and not mixed:
        told = "; ".join(f"{name}: {_two_of(values)}" for name, values in found.items())
        raise ConfigError(
            f"runs: {evaluation}: they were not judged alike ({told}): judge them again alike by visllama evaluate, "
            f"leave some out, or compare them all the same by mixed=true"
        )
    return found


def _two_of(values: Mapping[str, str]) -> str:
    """Return the first two values that differ, and whose they are."""
    (run, value), *others = values.items()
    other_run, other = next(each for each in others if each[1] != value)
    return f"{value} in {run}, {other} in {other_run}"


def shared_text(name: str, judged: Sequence[Mapping[str, object]]) -> str:
    """Return a condition in words where all runs share it; "" where they do not, or it is not known."""
    values = {short(one.get(name)) for one in judged}
    return values.pop() if len(values) == 1 and values != {_UNKNOWN} else ""
