"""Score answers to questions about images: VQA accuracy, in two modes that its published numbers mix.

The scale is 0-100 wherever a number is written or printed; a single question's accuracy is in [0, 1].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from visllama.config.choices import YES_NO_METRICS
from visllama.errors import ConfigError, refuse_ids
from visllama.evaluation.caption_files import read_json, read_results
from visllama.evaluation.statistics import CorpusMetric, bootstrap_intervals, grouped_metric
from visllama.evaluation.vqa_text import clean, normalise
from visllama.evaluation.yes_no import as_yes_or_no, counts_of_images, yes_no_counts, yes_no_metrics

MODES = {"accuracy": "official", "accuracy_normalise_all": "normalise_all"}
"""Each metric's mode of `accuracy`."""
TYPES = ("question_type", "answer_type")


class Asked(NamedTuple):
    """A question about an image, what its annotators answered, and what kinds it is of (`answer_type: yes/no`)."""

    question: str
    answers: list[str]
    image: str
    types: dict[str, str]


@dataclass(frozen=True)
class VqaScores:
    """The scores of answers, in the order of the ids of their questions.

    Attributes:
        per_question: Each metric of each question, in [0, 1].
        types: What each question is by the kinds of types (`answer_type`: yes/no); "" is none.
        ids: The questions' ids, as text.
        images: The image of each question.
        yes_no: What is counted of each yes/no question, shape `(questions 4)`; None where other questions are asked.
    """

    per_question: dict[str, np.ndarray]
    types: dict[str, np.ndarray]
    ids: list[str]
    images: list[str]
    yes_no: np.ndarray | None = None

    @property
    def metrics(self) -> dict[str, CorpusMetric]:
        """Each metric (0-100) over the images, of each of which all questions are one row."""
        metrics = {name: grouped_metric(100 * values, self.images) for name, values in self.per_question.items()}
        if self.yes_no is not None:
            metrics |= yes_no_metrics(counts_of_images(self.yes_no, self.images))
        return metrics

    @property
    def values(self) -> dict[str, float]:
        """Each metric (0-100) over all questions."""
        values = {name: 100 * float(values.mean()) for name, values in self.per_question.items()}
        if self.yes_no is not None:
            values |= {name: metric.value for name, metric in yes_no_metrics(self.yes_no).items()}
        return values

    @property
    def has_intervals(self) -> bool:
        """Whether the questions are on several images: of one alone nothing can be drawn again."""
        return len(set(self.images)) > 1

    @cached_property
    def _parts(self) -> dict[str, dict[str, VqaScores]]:
        """The scores of the questions of each type."""
        parts: dict[str, dict[str, VqaScores]] = {}
        for kind, values in self.types.items():
            found = [str(value) for value in np.unique(values) if value]
            parts[kind] = {value: self._of(values == value) for value in found}
        return parts

    def _of(self, rows: np.ndarray) -> VqaScores:
        """Return the scores of some of the questions."""
        per_question = {name: values[rows] for name, values in self.per_question.items()}
        ids = [self.ids[row] for row in np.flatnonzero(rows)]
        images = [self.images[row] for row in np.flatnonzero(rows)]
        return VqaScores(per_question, {}, ids, images, None if self.yes_no is None else self.yes_no[rows])

    @property
    def by_type(self) -> dict[str, dict[str, Any]]:
        """The accuracy (0-100) of each type of question; of yes/no questions every metric by its name."""
        return {
            kind: {value: self._shown_of_type(part.values) for value, part in parts.items()}
            for kind, parts in self._parts.items()
        }

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """The number of questions of each type."""
        return {kind: {value: len(part.ids) for value, part in parts.items()} for kind, parts in self._parts.items()}

    def intervals_by_type(self) -> dict[str, dict[str, Any]]:
        """Return the 95% interval of what `by_type` holds, of each type whose questions are on several images."""
        return {
            kind: {
                value: self._shown_of_type(bootstrap_intervals(part.metrics))
                for value, part in parts.items()
                if part.has_intervals
            }
            for kind, parts in self._parts.items()
        }

    def _shown_of_type(self, values: Mapping[str, Any]) -> Any:
        """Return what is told of a type: the accuracy, and of yes/no questions every metric by its name."""
        if self.yes_no is None:
            return values["accuracy"]
        return {name: values[name] for name in ("accuracy", *YES_NO_METRICS)}


def accuracy(prediction: str, answers: Sequence[str], mode: str = "official") -> float:
    """Return the share, in [0, 1], of how right an answer is: three annotators who say the same make it whole.

    Each annotator is left out in turn, by index: min(matches among the others / 3, 1), and the mean over the turns.
    With four annotators that is the share who agree, and so it is, for want of others, with one (an exact match), two
    or three; the official script knows ten alone.

    Args:
        mode: `official` normalises only where the annotators differ; `normalise_all` always does.

    Reference:
        Antol et al. 2015, arXiv:1505.00468, section 4, as averaged by github.com/GT-Vision-Lab/VQA.
    """
    if mode not in MODES.values():
        raise ValueError(f"mode={mode}: choose from {', '.join(MODES.values())}")
    said, *truths = map(clean, (prediction, *answers))
    if mode == "normalise_all" or len(set(truths)) > 1:
        said, *truths = map(normalise, (said, *truths))
    num, matches = len(truths), truths.count(said)
    enough = min(3, num - 1)
    if enough == 0:
        return float(matches)
    turns = matches * min(matches - 1, enough) + (num - matches) * min(matches, enough)
    return turns / (enough * num)


def score_answers(predictions: Mapping[str, str], questions: Mapping[str, Asked]) -> VqaScores:
    """Score one answer a question.

    Raises:
        ConfigError: If the two do not name the same questions, or one has no answers, naming the first five.
    """
    _check_ids(predictions, questions)
    ids = sorted(questions)
    per_question = {
        name: np.array([accuracy(predictions[key], questions[key].answers, mode) for key in ids])
        for name, mode in MODES.items()
    }
    kinds = sorted({kind for asked in questions.values() for kind in asked.types})
    types = {kind: np.array([questions[key].types.get(kind, "") for key in ids]) for kind in kinds}
    return VqaScores(per_question, types, ids, [questions[key].image for key in ids])


def score_yes_no(predictions: Mapping[str, str], questions: Mapping[str, Asked]) -> VqaScores:
    """Score one answer a question, read as yes or no by `as_yes_or_no`.

    Raises:
        ConfigError: As `score_answers` does, or if a question has another answer than yes or no.
    """
    check_yes_no(questions)
    said = {key: as_yes_or_no(answer) for key, answer in predictions.items()}
    truths = {key: asked.answers[0].strip().lower() for key, asked in questions.items()}
    scores = score_answers(said, {key: asked._replace(answers=[truths[key]]) for key, asked in questions.items()})
    counts = np.array([yes_no_counts(said[key], truths[key]) for key in scores.ids], dtype=float)
    return replace(scores, yes_no=counts)


def check_yes_no(questions: Mapping[str, Asked]) -> None:
    """Refuse questions whose answer is not yes or no, or not one of them alone, naming the first five."""
    others = []
    for key, asked in questions.items():
        truths = {answer.strip().lower() for answer in asked.answers}
        if truths not in ({"yes"}, {"no"}):
            others.append(key)
    refuse_ids(
        others, "questions have another answer than yes or no, and precision, recall, F1 and yes_share are of these"
    )


def _check_ids(predictions: Mapping[str, str], questions: Mapping[str, Asked]) -> None:
    if predictions and questions and not predictions.keys() & questions.keys():
        raise ConfigError(
            f"0 of {len(predictions)} predictions answer one of the {len(questions)} questions, first "
            f"{', '.join(sorted(predictions)[:5])}: is this another split, or another data set?"
        )
    refuse_ids(predictions.keys() - questions.keys(), "predictions answer questions that are not asked")
    refuse_ids(questions.keys() - predictions.keys(), "questions have no prediction")
    refuse_ids([key for key, asked in questions.items() if not asked.answers], "questions have no answers to score by")
    if not questions:
        raise ConfigError("there are no questions")


# ------------------------------------------------------------------------------------------------------------ files


def read_answers(path: Path) -> dict[str, str]:
    """Read `[{"question_id", "answer"}]` (VQA results, or such rows as .jsonl) or `{id: answer}`.

    Ids may be numbers or strings.

    Raises:
        ConfigError: For another layout, or an id that comes twice.
    """
    content = read_results(path)
    if isinstance(content, list):
        content = {key: row["answer"] for key, row in _by_id(path, content, ("answer",)).items()}
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected VQA results [{{'question_id', 'answer'}}] or a mapping {{id: answer}}")
    for key, answer in content.items():
        if not isinstance(answer, str):
            raise ConfigError(f"{path}: the answer to question {key} is no text: {str(answer)[:80]}")
    return content


def read_questions(questions_path: Path, annotations_path: Path) -> dict[str, Asked]:
    """Read official VQA questions and their annotations, joined by question_id; an `answer_id` is not needed.

    Raises:
        ConfigError: For another layout, an id that comes twice, or one that is in one of the files alone.
    """
    asked = read_rows(questions_path, "questions", ("image_id", "question"))
    annotated = read_rows(annotations_path, "annotations", ("answers",))
    refuse_ids(
        asked.keys() - annotated.keys(), f"questions of {questions_path} have no annotation in {annotations_path}"
    )
    refuse_ids(
        annotated.keys() - asked.keys(), f"annotations of {annotations_path} have no question in {questions_path}"
    )
    images = {key: str(row["image_id"]) for key, row in asked.items()}
    moved = [key for key, image in images.items() if str(annotated[key].get("image_id", image)) != image]
    refuse_ids(moved, f"questions of {questions_path} are about another image in {annotations_path}")
    return {
        key: Asked(
            str(row["question"]),
            _answers(annotations_path, key, annotated[key]["answers"]),
            images[key],
            {kind: str(annotated[key][kind]) for kind in TYPES if kind in annotated[key]},
        )
        for key, row in asked.items()
    }


def read_rows(path: Path, name: str, keys: Sequence[str]) -> dict[str, dict]:
    """Read the list `name` of one of VQA's files, by question id as text.

    Raises:
        ConfigError: If there is none, a row lacks one of `keys`, or an id comes twice.
    """
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get(name), list):
        found = f"the keys {', '.join(list(content)[:5])}" if isinstance(content, dict) else type(content).__name__
        wanted = ", ".join(f"'{key}'" for key in ("question_id", *keys))
        raise ConfigError(f"{path}: expected VQA {name} {{'{name}': [{{{wanted}}}]}}, found {found}")
    return _by_id(path, content[name], keys)


def _by_id(path: Path, rows: list, keys: Sequence[str]) -> dict[str, dict]:
    by_id: dict[str, dict] = {}
    doubled = set()
    for row in rows:
        if not isinstance(row, dict) or not {"question_id", *keys} <= row.keys():
            raise ConfigError(f"{path}: a row without {' and '.join(('question_id', *keys))}: {str(row)[:80]}")
        key = str(row["question_id"])
        if key in by_id:
            doubled.add(key)
        by_id[key] = row
    refuse_ids(doubled, f"question ids stand more than once in {path}")
    return by_id


def _answers(path: Path, key: str, answers: object) -> list[str]:
    rows = answers if isinstance(answers, list) else []
    texts = [row.get("answer") if isinstance(row, dict) else None for row in rows]
    if not texts or not all(isinstance(text, str) for text in texts):
        raise ConfigError(f"{path}: question {key}: expected answers [{{'answer'}}], found {str(answers)[:80]}")
    return texts
