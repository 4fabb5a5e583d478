"""Compare two runs on the same images: the difference of each metric, its interval and p-value, and that of each image.

The two runs are also called the first and the second system, since a run may hold the captions of any system.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from visllama.console import printable
from visllama.errors import ConfigError, require
from visllama.evaluation.per_image import ImageScores, read_scores
from visllama.evaluation.statistics import CorpusMetric, Difference, paired_difference
from visllama.report.conditions import Differences, check_alike, conditions
from visllama.report.judged_run import OF_FILES, JudgedRun

_MAIN = {"caption": "CIDEr", "vqa": "accuracy"}
"""The metric of each task by which single images are compared."""
_MOST_NAMED = 5


class Pair(NamedTuple):
    """The names under which two runs have the same evaluation.

    The names differ only for a run of `evaluate predictions=FILE`: it has one evaluation, named "predictions", which
    can be compared with any evaluation of the other run.

    Attributes:
        first: The evaluation's name in the first run.
        second: The evaluation's name in the second run.
    """

    first: str
    second: str

    @property
    def name(self) -> str:
        """The name of the comparison: the evaluation's name in the run that is not of `predictions=FILE`."""
        return self.second if self.first == OF_FILES else self.first


class MetricComparison(NamedTuple):
    """The values of one metric in both systems, on the scale of `metrics.json`, and the test of their difference.

    Attributes:
        first: The first system's value over all images.
        second: The second system's value over all images.
        difference: The second value minus the first, with its 95% interval and its p-value.
    """

    first: float
    second: float
    difference: Difference


class ImageDifference(NamedTuple):
    """The scores of both systems for one image, or for one question about an image.

    Attributes:
        id: The id of the image, or of the question, in the files of scores.
        image: The id of the image: the same as `id`, except for a question.
        first: The first system's score.
        second: The second system's score.
    """

    id: str
    image: str
    first: float
    second: float

    @property
    def difference(self) -> float:
        """The second system's score minus the first system's."""
        return self.second - self.first


class Comparison(NamedTuple):
    """The comparison of two systems in one evaluation.

    Attributes:
        pair: The names of the evaluation in both runs.
        task: What is judged: `caption` or `vqa`.
        metrics: The comparison in each metric that both runs have.
        lacking: The names of the metrics that only one run has, by the name of the other run, which lacks them.
        num_rows: The number of captions or answers.
        num_images: The number of images that the captions or answers belong to; the bootstrap draws images.
        main: The metric by which single images are compared; "" where no metric has a value for each image.
        images: The scores of each image or question in the metric `main`; empty where `main` is "".
        mixed: The conditions under which the runs were judged differently: the value as text, by the condition's and
            then the run's name.
    """

    pair: Pair
    task: str
    metrics: dict[str, MetricComparison]
    lacking: dict[str, list[str]]
    num_rows: int
    num_images: int
    main: str
    images: list[ImageDifference]
    mixed: Differences


class Scored(NamedTuple):
    """The scores of two runs in one evaluation, after the checks that they may be compared.

    Attributes:
        pair: The names of the evaluation in both runs.
        task: What is judged: `caption` or `vqa`.
        first: The first run's scores.
        second: The second run's scores.
        mixed: The conditions under which the runs were judged differently: the value as text, by the condition's and
            then the run's name.
    """

    pair: Pair
    task: str
    first: ImageScores
    second: ImageScores
    mixed: Differences


def shared_evaluations(first: JudgedRun, second: JudgedRun, wanted: Sequence[str] | None) -> list[Pair]:
    """Return the evaluations in which two runs are compared, by their names in both runs.

    Args:
        first: The first run.
        second: The second run.
        wanted: The names of evaluations, in the order of the result; None chooses all names that both runs have, in the
            order of the first run. A run of `evaluate predictions=FILE` is taken to have each name that is wanted.

    Raises:
        ConfigError: If a run lacks an evaluation that is wanted, or `wanted` is None and the runs share no evaluation.
    """
    if wanted is not None:
        return [Pair(_name_in(first, name), _name_in(second, name)) for name in wanted]

    shared = [name for name in first.evaluations if name in second.evaluations]
    if not shared:
        names_in_first = _listed(first.evaluations)
        names_in_second = _listed(second.evaluations)
        raise ConfigError(
            f"runs: they share no evaluation: {first.name} has {names_in_first}; {second.name} has {names_in_second}: "
            f"judge both on one by visllama evaluate; one of predictions= is compared with evaluations=NAME of the "
            f"other"
        )
    return [Pair(name, name) for name in shared]


def _name_in(run: JudgedRun, name: str) -> str:
    """Return the name under which a run has an evaluation.

    Raises:
        ConfigError: If the run does not have it.
    """
    if name in run.evaluations:
        return name
    # What `evaluate predictions=FILE` has judged has one evaluation, whose name says nothing.
    if list(run.evaluations) == [OF_FILES]:
        return OF_FILES
    wanted_name = printable(name)
    names = _listed(run.evaluations)
    raise ConfigError(f"evaluations={wanted_name}: {run.name} has {names}: choose one of them")


def _listed(names: Mapping[str, object]) -> str:
    return ", ".join(names) or "none"


def read_pair(first: JudgedRun, second: JudgedRun, pair: Pair, mixed: bool) -> Scored:
    """Check that two runs may be compared in one evaluation, and read the scores of each image from both folders.

    Args:
        first: The first run.
        second: The second run.
        pair: The names of the evaluation in both runs, as `shared_evaluations` returns them.
        mixed: Whether the runs may have been judged under different conditions. The images have to be the same also
            then.

    Raises:
        ConfigError: If the runs were judged under different conditions and `mixed` is false, if they were judged on
            different images, if a `scores.jsonl` is not there, or if they share no metric.
    """
    evaluation_of_first = first.evaluations[pair.first]
    evaluation_of_second = second.evaluations[pair.second]
    judged = {
        first.name: conditions(evaluation_of_first),
        second.name: conditions(evaluation_of_second),
    }
    different_conditions = check_alike(pair.name, judged, mixed)

    # Only now: a file of scores can be large.
    scores_of_first = _read_scores(first, pair.first)
    scores_of_second = _read_scores(second, pair.second)
    _check_ids(pair.name, first.name, scores_of_first, second.name, scores_of_second)

    shared = [name for name in scores_of_first.metrics if name in scores_of_second.metrics]
    require(bool(shared), f"runs: {pair.name}: {first.name} and {second.name} share no metric")
    return Scored(
        pair=pair,
        task=str(evaluation_of_first.get("task")),
        first=scores_of_first,
        second=scores_of_second,
        mixed=different_conditions,
    )


def _read_scores(run: JudgedRun, evaluation: str) -> ImageScores:
    path = run.scores_file(evaluation)
    if not path.is_file():
        missing_path = printable(path)
        raise ConfigError(
            f"runs: {missing_path} is not there: {run.name} was judged before scores of each image were kept: judge "
            f"it again by visllama evaluate"
        )
    return read_scores(path)


def _check_ids(name: str, first_run: str, first: ImageScores, second_run: str, second: ImageScores) -> None:
    """Refuse two files of scores of different images: a paired test needs the same images, also with `mixed=true`.

    Raises:
        ConfigError: If an id is in one file only, or the images behind the ids differ.
    """
    if first.ids == second.ids:
        _check_images(name, first_run, first, second_run, second)
        return

    ids_of_first = set(first.ids)
    ids_of_second = set(second.ids)
    only_in_run = {
        first_run: sorted(ids_of_first - ids_of_second),
        second_run: sorted(ids_of_second - ids_of_first),
    }

    parts = []
    for run, ids in only_in_run.items():
        if ids:
            named_ids = [printable(each) for each in ids[:_MOST_NAMED]]
            listed_ids = ", ".join(named_ids)
            parts.append(f"{len(ids):,} are in {run} alone, first {listed_ids}")

    reasons = "; ".join(parts)
    raise ConfigError(
        f"runs: {name}: image ids differ ({reasons}): a paired test is of the same images: judge both on the same "
        f"records"
    )


def _check_images(name: str, first_run: str, first: ImageScores, second_run: str, second: ImageScores) -> None:
    """Refuse the same questions on other images.

    Raises:
        ConfigError: If questions that share an image in one file do not share one in the other.
    """
    # An image may have another name in another system's file: the names have to map one to one.
    name_in_second: dict[str, str] = {}
    rows = zip(first.ids, first.images, second.images, strict=True)
    for row_id, image, other_image in rows:
        known_image = name_in_second.setdefault(image, other_image)
        if known_image != other_image:
            raise ConfigError(
                f"runs: {name}: image ids differ: {printable(row_id)} and another one are of one image in {first_run} "
                f"and of two in {second_run}: a paired test is of the same images: judge both on the same records"
            )

    num_in_first = len(name_in_second)
    num_in_second = len(set(name_in_second.values()))
    if num_in_second < num_in_first:
        raise ConfigError(
            f"runs: {name}: image ids differ: {first_run} has {num_in_first:,} images, and {second_run} "
            f"{num_in_second:,}: a paired test is of the same images: judge both on the same records"
        )


def compare(scored: Scored, first_run: str, second_run: str) -> Comparison:
    """Compare two systems in each metric that both have, by paired tests with resampling, which takes a while.

    Args:
        scored: The scores of both systems, as `read_pair` returns them.
        first_run: The name of the first run, for `Comparison.lacking`.
        second_run: The name of the second run.

    Raises:
        ConfigError: If a metric cannot be computed as a finite number, since a `scores.jsonl` holds counts of zero, for
            example.
    """
    metrics = {}
    for name, first, second in _pairs_of_metrics(scored):
        difference = paired_difference(first, second)
        # Counts of zero, for example, in a file that was written by hand.
        figures = [first.value, second.value, difference.value, *difference.interval]
        is_finite = np.isfinite(figures).all()
        if not is_finite:
            metric_name = printable(name)
            raise ConfigError(f"runs: {scored.pair.name}: {metric_name} of a scores.jsonl is no number")
        metrics[name] = MetricComparison(first.value, second.value, difference)

    main, images = _by_image(scored)
    different_images = set(scored.first.images)
    return Comparison(
        pair=scored.pair,
        task=scored.task,
        metrics=metrics,
        lacking=_lacking(scored, first_run, second_run),
        num_rows=len(scored.first.ids),
        num_images=len(different_images),
        main=main,
        images=images,
        mixed=scored.mixed,
    )


def _lacking(scored: Scored, first_run: str, second_run: str) -> dict[str, list[str]]:
    """Return the metrics that only one run has, by the name of the run that lacks them, if it lacks any."""
    # A reader who misses a metric in the comparison sees here why it is not there.
    metrics_of_first = scored.first.metrics
    metrics_of_second = scored.second.metrics
    only_in_second = [name for name in metrics_of_second if name not in metrics_of_first]
    only_in_first = [name for name in metrics_of_first if name not in metrics_of_second]

    missing_metrics = {first_run: only_in_second, second_run: only_in_first}
    return {run: missing for run, missing in missing_metrics.items() if missing}


def _by_image(scored: Scored) -> tuple[str, list[ImageDifference]]:
    """Return the metric by which images are compared, the task's main one where both have it, and each image in it."""
    first = scored.first
    second = scored.second
    shared = [name for name in first.per_row if name in second.per_row]
    if not shared:
        return "", []

    # A run may have been judged without the main metric of its task.
    main = _MAIN.get(scored.task, "")
    if main not in shared:
        main = shared[0]

    scores_of_first = first.per_row[main]
    scores_of_second = second.per_row[main]

    images = []
    rows = zip(first.ids, first.images, scores_of_first, scores_of_second, strict=True)
    for row_id, image, first_score, second_score in rows:
        images.append(ImageDifference(row_id, image, float(first_score), float(second_score)))
    return main, images


def _pairs_of_metrics(scored: Scored) -> Iterator[tuple[str, CorpusMetric, CorpusMetric]]:
    """Yield the name of each metric that both systems have, and it in both, over the same images in the same order."""
    order = _places_in_second(scored)
    metrics_of_second = scored.second.metrics

    for name, metric in scored.first.metrics.items():
        if name in metrics_of_second:
            other = metrics_of_second[name]
            terms = other.terms[order]
            yield name, metric, CorpusMetric(terms, other.combine)


def _places_in_second(scored: Scored) -> list[int]:
    """Return the row in the second system's `terms` of each image, in the order of the first system's `terms`."""
    # The rows of `terms` stand in the order of the sorted image names, which may be others in the second file.
    image_pairs = zip(scored.first.images, scored.second.images, strict=True)
    names_in_second = dict(image_pairs)
    sorted_in_second = sorted(set(scored.second.images))
    places = {image: place for place, image in enumerate(sorted_in_second)}

    order = []
    for image in sorted(names_in_second):
        name_in_second = names_in_second[image]
        order.append(places[name_in_second])
    return order


def most_changed(comparison: Comparison, count: int, shown: set[str]) -> list[ImageDifference]:
    """Return the images or questions whose score differs most between the systems, the largest difference first.

    Those whose score does not differ are left out. Among equal differences, as answers to questions often have, those
    with a picture come first, then by id. Where there are more than `count`, half are chosen from those with a higher
    score in the second system and half from those with a lower one; where one side has fewer, the other side has more.

    Args:
        comparison: The comparison.
        count: The largest number of images or questions that is returned.
        shown: The ids for which a picture can be shown, as `ids_with_pictures` returns them.
    """

    def rank(image: ImageDifference) -> tuple[float, bool, str]:
        has_no_picture = image.id not in shown
        return -abs(image.difference), has_no_picture, image.id

    changed_images = [image for image in comparison.images if image.difference != 0]
    ranked_images = sorted(changed_images, key=rank)
    if len(ranked_images) <= count:
        return ranked_images

    # Half of them from either side, so that a page shows what was won beside what was lost. Where one side has fewer,
    # the other side fills the rest.
    won_images = [image for image in ranked_images if image.difference > 0]
    lost_images = [image for image in ranked_images if image.difference < 0]
    half = count // 2
    left_by_lost = count - len(lost_images)
    num_won = min(len(won_images), max(half, left_by_lost))
    num_lost = count - num_won

    chosen_images = won_images[:num_won] + lost_images[:num_lost]
    chosen_ids = {image.id for image in chosen_images}
    return [image for image in ranked_images if image.id in chosen_ids]


def as_json(comparison: Comparison, changed: Sequence[ImageDifference]) -> dict[str, Any]:
    """Return a comparison as plain values for `report.json`; scores are on the scale of `metrics.json`.

    The keys are "task", "n" (the number of captions or answers), "num_images", "metrics" and "changed". The keys
    "lacking" and "mixed" are there only if not empty, and "names" only if the runs name the evaluation differently.

    Args:
        comparison: The comparison.
        changed: The images or questions that are listed: those that `most_changed` returns.
    """
    metrics = {}
    for name, metric in comparison.metrics.items():
        difference = metric.difference
        metrics[name] = {
            "first": metric.first,
            "second": metric.second,
            "difference": difference.value,
            "interval": difference.interval,
            "p": difference.p,
        }

    images = [image._asdict() for image in changed]

    content: dict[str, Any] = {
        "task": comparison.task,
        "n": comparison.num_rows,
        "num_images": comparison.num_images,
        "metrics": metrics,
        "changed": {"metric": comparison.main, "images": images},
    }
    # These three keys are in the file only where they say something.
    if comparison.lacking:
        content["lacking"] = comparison.lacking
    if comparison.mixed:
        content["mixed"] = comparison.mixed
    if comparison.pair.first != comparison.pair.second:
        content["names"] = list(comparison.pair)
    return content
