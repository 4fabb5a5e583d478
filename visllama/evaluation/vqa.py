"""Score answers to questions about images by VQA accuracy, and read VQA's files of questions and answers.

Published numbers mix two modes of the accuracy, and both are computed. Metrics over many questions are on the scale
0-100; a single question's accuracy is in [0, 1].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Shaped

from visllama.config.choices import YES_NO_METRICS
from visllama.errors import ConfigError, refuse_ids
from visllama.evaluation.caption_files import read_json, read_results
from visllama.evaluation.statistics import CorpusMetric, bootstrap_intervals, grouped_metric
from visllama.evaluation.vqa_text import clean, normalise
from visllama.evaluation.yes_no import as_yes_or_no, counts_of_images, yes_no_counts, yes_no_metrics

MODES = {"accuracy": "official", "accuracy_normalise_all": "normalise_all"}
"""The `mode` argument of `accuracy` by the name of the metric that is computed with it."""
TYPES = ("question_type", "answer_type")
"""The keys of a row of VQA's annotations that hold the types of its question."""


class Asked(NamedTuple):
    """A question about an image, with the answers that it is scored by.

    Attributes:
        question: The text of the question.
        answers: The answer of each annotator; equal answers are repeated.
        image: The image's id as text. Questions about the same image are drawn together for confidence intervals.
        types: The types of the question by the kind of type, for example `{"answer_type": "yes/no"}`.
    """

    question: str
    answers: list[str]
    image: str
    types: dict[str, str]


@dataclass(frozen=True)
class VqaScores:
    """The scores of answers to questions; every array and list has one entry for each question, in the order of `ids`.

    Attributes:
        per_question: The scores of each question in [0, 1], by the metric's name: `accuracy` and
            `accuracy_normalise_all`.
        types: The type of each question by the kind of type, for example "yes/no" under `answer_type`; "" for a
            question without a type of this kind.
        ids: The questions' ids as text, sorted.
        images: The id of each question's image, as text.
        yes_no: The counts of each question as `yes_no_counts` returns them; None if the answers were not read as yes or
            no.
    """

    per_question: dict[str, Float[np.ndarray, " questions"]]
    types: dict[str, Shaped[np.ndarray, " questions"]]
    ids: list[str]
    images: list[str]
    yes_no: Float[np.ndarray, "questions 4"] | None = None

    @property
    def metrics(self) -> dict[str, CorpusMetric]:
        """Each metric by its name, on the scale 0-100, as a `CorpusMetric` with one row for each image.

        `bootstrap_intervals` computes confidence intervals of these metrics by drawing whole images, so the questions
        about an image share a row. Rows are in the sorted order of the images' ids. The names are those of
        `per_question`, and of `YES_NO_METRICS` if the answers were read as yes or no.
        """
        metrics = {}
        for name, shares in self.per_question.items():
            metrics[name] = grouped_metric(100 * shares, self.images)
        if self.yes_no is not None:
            counts = counts_of_images(self.yes_no, self.images)
            metrics |= yes_no_metrics(counts)
        return metrics

    @property
    def values(self) -> dict[str, float]:
        """Each metric over all questions, on the scale 0-100, by its name; the names are those of `metrics`."""
        values = {}
        for name, shares in self.per_question.items():
            mean = float(shares.mean())
            values[name] = 100 * mean

        if self.yes_no is not None:
            metrics = yes_no_metrics(self.yes_no)
            for name, metric in metrics.items():
                values[name] = metric.value
        return values

    @property
    def has_intervals(self) -> bool:
        """Whether confidence intervals can be computed: the questions have to be about more than one image."""
        different_images = set(self.images)
        return len(different_images) > 1

    # Cached, because scores, counts and intervals by type each read it.
    @cached_property
    def _parts(self) -> dict[str, dict[str, VqaScores]]:
        """The scores of the questions of each type, by the kind of type and the type."""
        parts: dict[str, dict[str, VqaScores]] = {}
        for kind, types in self.types.items():
            parts[kind] = {}
            for value in np.unique(types):
                # A question without this kind of type has "", and is in no part.
                if value:
                    parts[kind][str(value)] = self._select(types == value)
        return parts

    def _select(self, rows: Bool[np.ndarray, " questions"]) -> VqaScores:
        """Return the scores of some of the questions.

        Args:
            rows: Whether each question is taken.
        """
        per_question = {}
        for name, shares in self.per_question.items():
            per_question[name] = shares[rows]
        yes_no = None
        if self.yes_no is not None:
            yes_no = self.yes_no[rows]

        numbers = np.flatnonzero(rows)
        ids = [self.ids[number] for number in numbers]
        images = [self.images[number] for number in numbers]
        return VqaScores(per_question, {}, ids, images, yes_no)

    @property
    def by_type(self) -> dict[str, dict[str, Any]]:
        """The accuracy of each type of question, on the scale 0-100, by the kind of type and the type.

        For example `{"answer_type": {"yes/no": 71.2, "number": 40.0}}`. If the answers were read as yes or no, each
        type has a mapping of all its metrics by their names in place of the accuracy.
        """
        scores: dict[str, dict[str, Any]] = {}
        for kind, parts in self._parts.items():
            scores[kind] = {}
            for value, part in parts.items():
                scores[kind][value] = self._reported(part.values)
        return scores

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """The number of questions of each type, for example `{"answer_type": {"yes/no": 12, "number": 3}}`."""
        counts: dict[str, dict[str, int]] = {}
        for kind, parts in self._parts.items():
            counts[kind] = {value: len(part.ids) for value, part in parts.items()}
        return counts

    def intervals_by_type(self) -> dict[str, dict[str, Any]]:
        """Return the 95% bootstrap interval `[low, high]` of each score of `by_type`, under the same keys as the score.

        A type whose questions are all about one image is left out, since a single image cannot be drawn in different
        ways.
        """
        intervals: dict[str, dict[str, Any]] = {}
        for kind, parts in self._parts.items():
            intervals[kind] = {}
            for value, part in parts.items():
                if part.has_intervals:
                    intervals_of_part = bootstrap_intervals(part.metrics)
                    intervals[kind][value] = self._reported(intervals_of_part)
        return intervals

    def _reported(self, values: Mapping[str, Any]) -> Any:
        """Return what is reported of a type: the accuracy, or for yes/no questions every metric by its name."""
        if self.yes_no is None:
            return values["accuracy"]
        return {name: values[name] for name in ("accuracy", *YES_NO_METRICS)}


def accuracy(prediction: str, answers: Sequence[str], mode: str = "official") -> float:
    """Return the VQA accuracy of one answer, in [0, 1].

    With ten annotators, for whom the official script is made, each annotator is left out in turn, and the answer scores
    min(n / 3, 1), where n is the number of the other annotators who gave the same answer; the accuracy is the mean over
    all turns. That holds for any number above three. With up to four annotators, the accuracy is the share of
    annotators who gave the same answer.

    Args:
        prediction: The answer to be scored.
        answers: The answer of each annotator, at least one; equal answers are repeated.
        mode: `official` normalises the answers (`vqa_text.normalise`) only if the annotators differ; `normalise_all`
            always does.

    Raises:
        ValueError: If there is no such mode.

    Reference:
        Antol et al. 2015, arXiv:1505.00468, section 4, as averaged by github.com/GT-Vision-Lab/VQA.
    """
    if mode not in MODES.values():
        choices = ", ".join(MODES.values())
        raise ValueError(f"mode={mode}: choose from {choices}")

    # The official script normalises nothing where all annotators say the same.
    answer = clean(prediction)
    truths = [clean(truth) for truth in answers]
    has_different_truths = len(set(truths)) > 1
    if mode == "normalise_all" or has_different_truths:
        answer = normalise(answer)
        truths = [normalise(truth) for truth in truths]

    num_annotators = len(truths)
    matches = truths.count(answer)
    enough = min(3, num_annotators - 1)
    if enough == 0:
        return float(matches)

    # In a turn that leaves out a matching annotator, one match fewer is among the others. Whole numbers are summed, so
    # that the accuracy has one rounding.
    num_others = num_annotators - matches
    turns_of_matching = matches * min(matches - 1, enough)
    turns_of_others = num_others * min(matches, enough)
    whole = enough * num_annotators
    return (turns_of_matching + turns_of_others) / whole


def score_answers(predictions: Mapping[str, str], questions: Mapping[str, Asked]) -> VqaScores:
    """Score one answer to each question by both modes of `accuracy`, `official` and `normalise_all`.

    Args:
        predictions: The answer to each question, by the question's id as text.
        questions: The questions with their annotators' answers, by the same ids.

    Returns:
        The scores, with the questions in the sorted order of their ids; `yes_no` is None.

    Raises:
        ConfigError: If answers and questions do not have the same ids, a question has no answers of annotators, or
            there are no questions. The message names the first five ids.
    """
    _check_ids(predictions, questions)
    # Sorted, so that the order of the files changes nothing.
    ids = sorted(questions)

    in_order = [questions[key] for key in ids]
    answers = [predictions[key] for key in ids]

    per_question = {}
    for name, mode in MODES.items():
        shares = []
        for answer, asked in zip(answers, in_order, strict=True):
            shares.append(accuracy(answer, asked.answers, mode))
        per_question[name] = np.array(shares)

    kinds: set[str] = set()
    for asked in in_order:
        kinds.update(asked.types)
    types = {}
    for kind in sorted(kinds):
        types_of_questions = [asked.types.get(kind, "") for asked in in_order]
        types[kind] = np.array(types_of_questions)

    images = [asked.image for asked in in_order]
    return VqaScores(per_question, types, ids, images)


def score_yes_no(predictions: Mapping[str, str], questions: Mapping[str, Asked]) -> VqaScores:
    """Read each answer as yes or no by `as_yes_or_no`, and score it by accuracy, precision, recall, F1 and yes_share.

    Args:
        predictions: The answer to each question, by the question's id as text.
        questions: The questions by the same ids; the annotators of each question have to agree on yes or on no.

    Returns:
        The scores, with the counts of each question in `yes_no`.

    Raises:
        ConfigError: If a question's annotators do not agree on yes or no, answers and questions do not have the same
            ids, or there are no questions. The message names the first five ids.
    """
    check_yes_no(questions)
    answers = {key: as_yes_or_no(answer) for key, answer in predictions.items()}

    # All annotators agree, so one truth is left of each question, and its accuracy is 0 or 1.
    truths = {}
    with_one_truth = {}
    for key, asked in questions.items():
        truth = _yes_or_no_of_annotator(asked.answers[0])
        truths[key] = truth
        with_one_truth[key] = asked._replace(answers=[truth])

    scores = score_answers(answers, with_one_truth)
    counts = [yes_no_counts(answers[key], truths[key]) for key in scores.ids]
    return replace(scores, yes_no=np.array(counts, dtype=float))


def check_yes_no(questions: Mapping[str, Asked]) -> None:
    """Check that the annotators of each question all answer yes, or all answer no; case and outer spaces do not count.

    Args:
        questions: The questions by their ids as text.

    Raises:
        ConfigError: If the annotators of a question disagree, or give another answer than yes or no. The message names
            the first five ids.
    """
    others = []
    for key, asked in questions.items():
        truths = {_yes_or_no_of_annotator(answer) for answer in asked.answers}
        if truths not in ({"yes"}, {"no"}):
            others.append(key)
    reason = "questions have another answer than yes or no, and precision, recall, F1 and yes_share are of these"
    refuse_ids(others, reason)


def _yes_or_no_of_annotator(answer: str) -> str:
    """Return an annotator's answer without outer spaces and in small letters, so that " Yes" is "yes"."""
    return answer.strip().lower()


def _check_ids(predictions: Mapping[str, str], questions: Mapping[str, Asked]) -> None:
    """Refuse answers to unknown questions, and questions without an answer or without answers to score by."""
    # No shared id at all has another cause than a missing one, and its message says so.
    shared_ids = predictions.keys() & questions.keys()
    if predictions and questions and not shared_ids:
        first_ids = sorted(predictions)[:5]
        raise ConfigError(
            f"0 of {len(predictions)} predictions answer one of the {len(questions)} questions, first "
            f"{', '.join(first_ids)}: is this another split, or another data set?"
        )

    unknown = predictions.keys() - questions.keys()
    refuse_ids(unknown, "predictions answer questions that are not asked")
    unanswered = questions.keys() - predictions.keys()
    refuse_ids(unanswered, "questions have no prediction")
    without_answers = [key for key, asked in questions.items() if not asked.answers]
    refuse_ids(without_answers, "questions have no answers to score by")
    if not questions:
        raise ConfigError("there are no questions")


# ------------------------------------------------------------------------------------------------------------ files


def read_answers(path: Path) -> dict[str, str]:
    """Read a file of answers, and return the answer to each question, by the question's id as text.

    Args:
        path: A JSON file that holds `[{"question_id": 1, "answer": "yes"}, ...]` (VQA's results) or `{id: answer}`, or
            a .jsonl file with such a row on each line. Ids may be numbers or strings; further keys are ignored.

    Raises:
        ConfigError: If the file cannot be read, has another layout, or holds an id more than once.
    """
    content = read_results(path)
    if isinstance(content, list):
        rows = _by_id(path, content, ("answer",))
        content = {key: row["answer"] for key, row in rows.items()}

    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected VQA results [{{'question_id', 'answer'}}] or a mapping {{id: answer}}")
    for key, answer in content.items():
        if not isinstance(answer, str):
            beginning = str(answer)[:80]
            raise ConfigError(f"{path}: the answer to question {key} is no text: {beginning}")
    return content


def read_questions(questions_path: Path, annotations_path: Path) -> dict[str, Asked]:
    """Read VQA's two files, and return each question with its annotators' answers, by the question's id as text.

    The files are joined by `question_id`. The order is that of the file of questions.

    Args:
        questions_path: The file of questions: `{"questions": [{"question_id", "image_id", "question"}, ...]}`.
        annotations_path: The file of annotations: `{"annotations": [{"question_id", "answers": [{"answer"}, ...]},
            ...]}`. Its rows may have an `image_id`, a `question_type` and an `answer_type`.

    Raises:
        ConfigError: If a file has another layout or an id more than once, an id is in one of the files alone, or the
            files name different images for a question.
    """
    questions = read_rows(questions_path, "questions", ("image_id", "question"))
    annotations = read_rows(annotations_path, "annotations", ("answers",))
    without_annotation = questions.keys() - annotations.keys()
    refuse_ids(without_annotation, f"questions of {questions_path} have no annotation in {annotations_path}")
    without_question = annotations.keys() - questions.keys()
    refuse_ids(without_question, f"annotations of {annotations_path} have no question in {questions_path}")

    # An annotation need not name its image; one that does has to name the question's.
    moved = []
    for key, row in questions.items():
        image = str(row["image_id"])
        annotated_image = annotations[key].get("image_id", image)
        if str(annotated_image) != image:
            moved.append(key)
    refuse_ids(moved, f"questions of {questions_path} are about another image in {annotations_path}")

    joined = {}
    for key, row in questions.items():
        annotation = annotations[key]
        types = {}
        for kind in TYPES:
            if kind in annotation:
                types[kind] = str(annotation[kind])
        joined[key] = Asked(
            question=str(row["question"]),
            answers=_answers(annotations_path, key, annotation["answers"]),
            image=str(row["image_id"]),
            types=types,
        )
    return joined


def read_rows(path: Path, name: str, keys: Sequence[str]) -> dict[str, dict]:
    """Read one of VQA's files, and return the unchanged rows of its list by the question's id as text.

    Args:
        path: The file, which holds `{name: [rows]}`.
        name: The key of the list, `questions` or `annotations`.
        keys: The keys that each row has to have besides `question_id`.

    Raises:
        ConfigError: If the file has no such list, a row lacks one of `keys`, or an id comes more than once.
    """
    content = read_json(path)
    rows = content.get(name) if isinstance(content, dict) else None
    if isinstance(rows, list):
        return _by_id(path, rows, keys)

    content_words = type(content).__name__
    if isinstance(content, dict):
        first_keys = list(content)[:5]
        content_words = f"the keys {', '.join(first_keys)}"
    quoted = [f"'{key}'" for key in ("question_id", *keys)]
    wanted = ", ".join(quoted)
    raise ConfigError(f"{path}: expected VQA {name} {{'{name}': [{{{wanted}}}]}}, found {content_words}")


def _by_id(path: Path, rows: list, keys: Sequence[str]) -> dict[str, dict]:
    """Return rows by the question's id as text; a row that lacks a key, and an id that comes again, are refused."""
    wanted = ("question_id", *keys)
    wanted_keys = set(wanted)
    by_id: dict[str, dict] = {}
    duplicates = set()
    for row in rows:
        if not isinstance(row, dict) or not wanted_keys <= row.keys():
            beginning = str(row)[:80]
            raise ConfigError(f"{path}: a row without {' and '.join(wanted)}: {beginning}")

        key = str(row["question_id"])
        if key in by_id:
            duplicates.add(key)
        by_id[key] = row

    refuse_ids(duplicates, f"question ids stand more than once in {path}")
    return by_id


def _answers(path: Path, key: str, answers: object) -> list[str]:
    """Return the texts of the answers in a row of annotations; answers of another layout are refused."""
    rows = answers if isinstance(answers, list) else []
    texts: list[str] = []
    for row in rows:
        text = row.get("answer") if isinstance(row, dict) else None
        if isinstance(text, str):
            texts.append(text)

    if not texts or len(texts) != len(rows):
        beginning = str(answers)[:80]
        raise ConfigError(f"{path}: question {key}: expected answers [{{'answer'}}], found {beginning}")
    return texts
