"""Compare the conditions that evaluations were judged under, and refuse scores that do not compare.

The conditions are the task, the split, the prompt and the decoding, and for captions the tokenizer and the document
frequencies of their metrics.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence

from visllama.console import printable
from visllama.errors import ConfigError
from visllama.evaluation.metrics_file import is_number, mapping

# What decides over the scores of every task, and what does so only where captions are scored.
_ALWAYS = ("task", "split", "prompt", "decoding")
_OF_CAPTIONS = ("tokenizer", "document_frequencies")
NUM_RECORDS = "n"
"""The key of `metrics.json` under which an evaluation has the number of its records."""
_UNKNOWN = "not known"
_MOST_CHARACTERS = 60
Conditions = Mapping[str, object]
"""The value of each condition that an evaluation was judged under, by its name."""
Differences = dict[str, dict[str, str]]
"""The conditions that are not the same in all runs: the value as text, by the condition's and then the run's name."""


def conditions(evaluation: Mapping) -> dict[str, object]:
    """Return the conditions that an evaluation was judged under, which two runs must share to be compared.

    These are "task", "split", "prompt" and "decoding", and for captions also "tokenizer" and "document_frequencies".

    Args:
        evaluation: An evaluation as `metrics.json` holds it.

    Returns:
        The value of each condition by its name; None where the file does not hold it.
    """
    by_name: dict[str, object] = {name: evaluation.get(name) for name in _ALWAYS}
    if "prompt" not in evaluation:
        # Evaluations that answer questions call it so.
        by_name["prompt"] = evaluation.get("hint")

    # The ids of special tokens are no part of a decoding: another language model has others.
    decoding = mapping(evaluation, "decoding")
    options = {}
    for key, value in decoding.items():
        if not key.endswith("_token_id"):
            options[key] = value
    by_name["decoding"] = options or None

    if evaluation.get("task") == "caption":
        for name in _OF_CAPTIONS:
            by_name[name] = evaluation.get(name)
    return by_name


def differences(judged: Mapping[str, Conditions]) -> Differences:
    """Return the conditions that are not the same in all runs; an empty dictionary if no condition differs.

    Args:
        judged: The conditions of each run, as `conditions` returns them, by the run's name.

    Returns:
        For each such condition the value of each run as a text, by the run's name. Of decodings, the text holds only
        the options that differ.
    """
    names: dict[str, None] = {}
    for of_run in judged.values():
        names.update(dict.fromkeys(of_run))

    different_conditions: Differences = {}
    for name in names:
        values = {run: of_run.get(name) for run, of_run in judged.items()}
        if _has_difference(values.values()):
            different_conditions[name] = _in_words(values)
    return different_conditions


def _has_difference(values: Iterable[object]) -> bool:
    # As JSON, because dictionaries cannot stand in a set.
    different_values = {json.dumps(value, sort_keys=True) for value in values}
    return len(different_values) > 1


def _in_words(values: Mapping[str, object]) -> dict[str, str]:
    """Return each run's value as text. If all are mappings, as decodings are, only the keys that differ are written."""
    # A decoding has a dozen options: only those that differ help to see what was done otherwise.
    mappings = {run: value for run, value in values.items() if isinstance(value, Mapping)}
    are_all_mappings = len(mappings) == len(values)
    if not are_all_mappings:
        return {run: short(value) for run, value in values.items()}

    differing_keys = _differing_keys(mappings.values())
    texts = {}
    for run, options in mappings.items():
        parts = []
        for key in differing_keys:
            name = printable(key)
            value = short(options.get(key))
            parts.append(f"{name}={value}")
        texts[run] = ", ".join(parts)
    return texts


def _differing_keys(mappings: Collection[Mapping]) -> list[object]:
    """Return the keys at which mappings have different values, in the order of the mappings."""
    keys: dict[object, None] = {}
    for options in mappings:
        keys.update(dict.fromkeys(options))

    keys_that_differ = []
    for key in keys:
        different_values = {json.dumps(options.get(key)) for options in mappings}
        if len(different_values) > 1:
            keys_that_differ.append(key)
    return keys_that_differ


def short(value: object) -> str:
    """Return a condition's value as a text of at most 60 characters and "..."; "not known" for None.

    An empty text becomes "none". A mapping is taken for a decoding: its text is like "greedy, at most 40 tokens".
    """
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
    """Return a decoding as a text, for example "greedy, at most 40 tokens".

    If the options name neither the method nor the limit, the text is "not known".

    Args:
        decoding: The options of transformers' `generate`, of which `do_sample`, `num_beams` and `max_new_tokens` are
            read.
    """
    words = []
    # The file may be somebody else's: only numbers are taken as numbers.
    beams = decoding.get("num_beams")
    if decoding.get("do_sample"):
        words.append("sampled")
    elif is_number(beams):
        words.append("greedy" if beams == 1 else f"{beams} beams")

    most_tokens = decoding.get("max_new_tokens")
    if is_number(most_tokens):
        words.append(f"at most {most_tokens} tokens")
    return ", ".join(words) or _UNKNOWN


def check_alike(evaluation: str, judged: Mapping[str, Conditions], mixed: bool) -> Differences:
    """Check that all runs were judged under the same conditions, and return those that differ if `mixed` allows it.

    Args:
        evaluation: The name of the evaluation, for the message.
        judged: The conditions of each run, as `conditions` returns them, by the run's name.
        mixed: Whether runs may differ in their conditions.

    Returns:
        For each condition that differs the value of each run as a text, by the run's name; empty if none differs.

    Raises:
        ConfigError: If a condition differs and `mixed` is false. The message names each such condition and two of its
            values.
    """
    different_conditions = differences(judged)
    if different_conditions and not mixed:
        parts = [f"{name}: {_two_values(values)}" for name, values in different_conditions.items()]
        reasons = "; ".join(parts)
        raise ConfigError(
            f"runs: {evaluation}: they were not judged alike ({reasons}): judge them again alike by visllama "
            f"evaluate, leave some out, or compare them all the same by mixed=true"
        )
    return different_conditions


def _two_values(values: Mapping[str, str]) -> str:
    """Return the first two values that differ, each with the run that has it."""
    (run, value), *others = values.items()
    different = ((other_run, other) for other_run, other in others if other != value)
    other_run, other = next(different)
    return f"{value} in {run}, {other} in {other_run}"


def shared_text(name: str, judged: Sequence[Conditions]) -> str:
    """Return the value of a condition, as `short` writes it, if all runs share the value; else "".

    The result is also "" if the value is not known.

    Args:
        name: The name of the condition.
        judged: The conditions of each run.
    """
    values = {short(of_run.get(name)) for of_run in judged}
    if len(values) != 1 or values == {_UNKNOWN}:
        return ""
    return values.pop()
