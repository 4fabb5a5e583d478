"""Two runs on the same images: how much each metric differs, how sure that is, and by which images it came."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from visllama.console import printable
from visllama.errors import ConfigError, require
from visllama.evaluation.per_image import ImageScores, read_scores
from visllama.evaluation.statistics import CorpusMetric, Difference, paired_difference
from visllama.report.conditions import check_alike, conditions
from visllama.report.judged_run import OF_FILES, JudgedRun

_MAIN = {"caption": "CIDEr", "vqa": "accuracy"}
_MOST_NAMED = 5


class Pair(NamedTuple):
    """An evaluation that two runs have, by its name in each: files have but one, which has no name of its own."""

    first: str
    second: str

    @property
    def name(self) -> str:
        """The name by which the comparison is known."""
        return self.second if self.first == OF_FILES else self.first


class MetricComparison(NamedTuple):
    """A metric of both systems, and how it differs."""

    first: float
    second: float
    difference: Difference


class ImageDifference(NamedTuple):
    """The main metric of one image, or of one question, in both systems.

    Attributes:
        id: The id by which it is scored.
        image: The image that it belongs to: the same, but of a question.
        first: The first system's score.
        second: The second system's.
    """

    id: str
    image: str
    first: float
    second: float

    @property
    def difference(self) -> float:
        """How much the second system is better."""
        return self.second - self.first


class Comparison(NamedTuple):
    """All that differs in one evaluation.

    Attributes:
        pair: The evaluation.
        task: What is judged: `caption` or `vqa`.
        metrics: Each metric that both have.
        lacking: The metrics that one alone has, by the name of the run that lacks them.
        num_rows: The number of captions or answers.
        num_images: The number of images that they belong to, which are drawn.
        main: The metric by which images are compared.
        images: Each image or question in it.
        mixed: The conditions that differ, with their values by run.
    """

    pair: Pair
    task: str
    metrics: dict[str, MetricComparison]
    lacking: dict[str, list[str]]
    num_rows: int
    num_images: int
    main: str
    images: list[ImageDifference]
    mixed: dict[str, dict[str, str]]


class Scored(NamedTuple):
    """An evaluation of two runs, read and found fit to be compared."""

    pair: Pair
    task: str
    first: ImageScores
    second: ImageScores
    mixed: dict[str, dict[str, str]]


def shared_evaluations(first: JudgedRun, second: JudgedRun, wanted: Sequence[str] | None) -> list[Pair]:
    """Return the evaluations that are compared.

    Args:
        first: A run.
        second: Another one.
        wanted: The names of evaluations; None are all that both have. One that was made of files alone
            (`predictions=`) has any name.

    Raises:
        ConfigError: If one has not what is wanted, or both have nothing in common.
    """
    if wanted is not None:
        return [Pair(_named(first, name), _named(second, name)) for name in wanted]
    shared = [name for name in first.evaluations if name in second.evaluations]
    if not shared:
        told = "; ".join(f"{run.name} has {_listed(run.evaluations)}" for run in (first, second))
        raise ConfigError(
            f"runs: they share no evaluation: {told}: judge both on one by visllama evaluate; one of predictions= is "
            f"compared with evaluations=NAME of the other"
        )
    return [Pair(name, name) for name in shared]


def _named(run: JudgedRun, name: str) -> str:
    if name in run.evaluations:
        return name
    if list(run.evaluations) == [OF_FILES]:
        return OF_FILES
    raise ConfigError(f"evaluations={printable(name)}: {run.name} has {_listed(run.evaluations)}: choose one of them")


def _listed(names: Mapping[str, object]) -> str:
    return ", ".join(names) or "none"


def read_pair(first: JudgedRun, second: JudgedRun, pair: Pair, mixed: bool) -> Scored:
    """Read the scores of every image, once it is clear that the two may be compared.

    Raises:
        ConfigError: If they were judged otherwise and that is not asked for, on other images, or a file is not there.
    """
    one = first.evaluations[pair.first]
    two = second.evaluations[pair.second]
    judged = {first.name: conditions(one), second.name: conditions(two)}
    differing = check_alike(pair.name, judged, mixed)
    scores_of_first = _read_scores(first, pair.first)
    scores_of_second = _read_scores(second, pair.second)
    _check_ids(pair.name, first.name, scores_of_first, second.name, scores_of_second)
    shared = [name for name in scores_of_first.metrics if name in scores_of_second.metrics]
    require(bool(shared), f"runs: {pair.name}: {first.name} and {second.name} share no metric")
    return Scored(pair, str(one.get("task")), scores_of_first, scores_of_second, differing)


def _read_scores(run: JudgedRun, evaluation: str) -> ImageScores:
    path = run.scores_file(evaluation)
    if not path.is_file():
        raise ConfigError(
            f"runs: {printable(path)} is not there: {run.name} was judged before scores of each image were kept: judge "
            f"it again by visllama evaluate"
        )
    return read_scores(path)


def _check_ids(name: str, first_run: str, first: ImageScores, second_run: str, second: ImageScores) -> None:
    """Refuse other images: no choice makes a paired test of them."""
    if first.ids == second.ids:
        _check_images(name, first_run, first, second_run, second)
        return
    told = []
    for run, only in (
        (first_run, sorted(set(first.ids) - set(second.ids))),
        (second_run, sorted(set(second.ids) - set(first.ids))),
    ):
        if only:
            shown = ", ".join(printable(each) for each in only[:_MOST_NAMED])
            told.append(f"{len(only):,} are in {run} alone, first {shown}")
    raise ConfigError(
        f"runs: {name}: image ids differ ({'; '.join(told)}): a paired test is of the same images: judge both on the "
        f"same records"
    )


def _check_images(name: str, first_run: str, first: ImageScores, second_run: str, second: ImageScores) -> None:
    """Refuse the same questions on other images. An image may have another name in another system's file."""
    names: dict[str, str] = {}
    for own_id, image, other in zip(first.ids, first.images, second.images, strict=True):
        if names.setdefault(image, other) != other:
            raise ConfigError(
                f"runs: {name}: image ids differ: {printable(own_id)} and another one are of one image in {first_run} "
                f"and of two in {second_run}: a paired test is of the same images: judge both on the same records"
            )
    if len(set(names.values())) < len(names):
        raise ConfigError(
            f"runs: {name}: image ids differ: {first_run} has {len(names):,} images, and {second_run} "
            f"{len(set(names.values())):,}: a paired test is of the same images: judge both on the same records"
        )


def compare(scored: Scored, first_run: str, second_run: str) -> Comparison:
    """Compare two systems in every metric that both have.

    Raises:
        ConfigError: If the counts of a file are such that a metric is no number.
    """
    metrics = {}
    for name, one, two in _pairs_of_metrics(scored):
        difference = paired_difference(one, two)
        figures = [one.value, two.value, difference.value, *difference.interval]
        if not np.isfinite(figures).all():
            raise ConfigError(f"runs: {scored.pair.name}: {printable(name)} of a scores.jsonl is no number")
        metrics[name] = MetricComparison(one.value, two.value, difference)
    lacking = {}
    for run, has, other in (
        (first_run, scored.first, scored.second),
        (second_run, scored.second, scored.first),
    ):
        missing = [name for name in other.metrics if name not in has.metrics]
        if missing:
            lacking[run] = missing
    main, images = _by_image(scored)
    num_images = len(set(scored.first.images))
    return Comparison(
        scored.pair,
        scored.task,
        metrics,
        lacking,
        len(scored.first.ids),
        num_images,
        main,
        images,
        scored.mixed,
    )


def _by_image(scored: Scored) -> tuple[str, list[ImageDifference]]:
    """Return the metric by which images are compared, the main one where it is there, and each image in it."""
    first, second = scored.first, scored.second
    shared = [name for name in first.per_row if name in second.per_row]
    if not shared:
        return "", []
    main = _MAIN.get(scored.task, "")
    main = main if main in shared else shared[0]
    rows = zip(first.ids, first.images, first.per_row[main], second.per_row[main], strict=True)
    return main, [ImageDifference(own_id, image, float(one), float(two)) for own_id, image, one, two in rows]


def _pairs_of_metrics(scored: Scored) -> Iterator[tuple[str, CorpusMetric, CorpusMetric]]:
    """Yield each metric that both have, over the same images in the same order."""
    names_in_second = dict(zip(scored.first.images, scored.second.images, strict=True))
    places = {image: place for place, image in enumerate(sorted(set(scored.second.images)))}
    order = [places[names_in_second[image]] for image in sorted(names_in_second)]
    for name, metric in scored.first.metrics.items():
        if name in scored.second.metrics:
            other = scored.second.metrics[name]
            yield name, metric, CorpusMetric(other.terms[order], other.combine)


def most_changed(comparison: Comparison, count: int, shown: set[str]) -> list[ImageDifference]:
    """Return the images or questions whose score differs most, the largest difference first.

    Of those that differ as much, as the answers to questions do, the ones that can be shown come first. What does not
    differ is left out.

    Args:
        comparison: The comparison.
        count: How many are returned at most.
        shown: The ids of those of which there is a picture.
    """
    changed = [image for image in comparison.images if image.difference != 0]
    ranked = sorted(changed, key=lambda image: (-abs(image.difference), image.id not in shown, image.id))
    if len(ranked) <= count:
        return ranked
    # Half of them from either side, so that a page shows what was won beside what was lost.
    won = [image for image in ranked if image.difference > 0]
    lost = [image for image in ranked if image.difference < 0]
    num_won = min(len(won), max(count // 2, count - len(lost)))
    chosen = {image.id for image in won[:num_won] + lost[: count - num_won]}
    return [image for image in ranked if image.id in chosen]


def as_json(comparison: Comparison, changed: Sequence[ImageDifference]) -> dict:
    """Return a comparison as `report.json` holds it, on the scale of `metrics.json`."""
    metrics = {}
    for name, metric in comparison.metrics.items():
        metrics[name] = {
            "first": metric.first,
            "second": metric.second,
            "difference": metric.difference.value,
            "interval": metric.difference.interval,
            "p": metric.difference.p,
        }
    found = {
        "task": comparison.task,
        "n": comparison.num_rows,
        "num_images": comparison.num_images,
        "metrics": metrics,
        "changed": {"metric": comparison.main, "images": [image._asdict() for image in changed]},
    }
    if comparison.lacking:
        found["lacking"] = comparison.lacking
    if comparison.mixed:
        found["mixed"] = comparison.mixed
    if comparison.pair.first != comparison.pair.second:
        found["names"] = list(comparison.pair)
    return found
