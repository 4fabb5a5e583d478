"""Score captions against references as COCO does, by BLEU, METEOR, ROUGE-L and CIDEr after the PTB tokenizer.

Scores are on pycocoevalcap's own scale, on which 1 is printed as 100 in papers and tables (CIDEr can be above 1).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import NamedTuple

import numpy as np
from pycocoevalcap.rouge.rouge import Rouge

from visllama.config.choices import METRICS
from visllama.errors import ConfigError, refuse_ids
from visllama.evaluation.bleu import MOST_WORDS, bleu_counts, bleu_of_counts
from visllama.evaluation.cider import ReferenceNgrams, cider_scores
from visllama.evaluation.meteor import meteor_counts, meteor_of_counts
from visllama.evaluation.ptb_tokenizer import tokenise
from visllama.evaluation.statistics import CorpusMetric, bootstrap_intervals, mean_metric


class CaptionScores(NamedTuple):
    """The scores of one caption for each image.

    Attributes:
        metrics: Each metric by its name, for example `BLEU-4`, as a `CorpusMetric` with one row for each image, in the
            order of `ids`.
        ids: The images' ids as text, sorted.
    """

    metrics: dict[str, CorpusMetric]
    ids: list[str]

    @property
    def values(self) -> dict[str, float]:
        """Each metric over all images, as a number by the metric's name."""
        return {name: metric.value for name, metric in self.metrics.items()}

    def by_type(self, types: Mapping[str, str]) -> dict[str, dict]:
        """Return the scores of the images of each type as metrics.json has them, for example of nocaps' "in-domain".

        How rare a word is for CIDEr is counted in all images, not in those of a type alone.

        Args:
            types: The type of each image that has one, by the image's id as text.

        Returns:
            The scores under `by_type`, their 95% intervals under `intervals_by_type`, and the numbers of images under
            `counts`. Each holds `{"type": {TYPE: ...}}`, with the types in sorted order. A type of a single image has
            no interval. An empty mapping is returned if no image has a type.
        """
        type_of_image = np.array([types.get(key, "") for key in self.ids])
        different_types = sorted(set(type_of_image.tolist()) - {""})
        scores: dict[str, dict[str, float]] = {}
        intervals: dict[str, dict[str, list[float]]] = {}
        counts: dict[str, int] = {}
        for value in different_types:
            rows = type_of_image == value
            parts = {name: metric._replace(terms=metric.terms[rows]) for name, metric in self.metrics.items()}
            scores[value] = {name: part.value for name, part in parts.items()}
            counts[value] = int(rows.sum())
            # A single image cannot be drawn in different ways.
            if counts[value] > 1:
                intervals[value] = bootstrap_intervals(parts)

        if not scores:
            return {}
        return {
            "by_type": {"type": scores},
            "intervals_by_type": {"type": intervals},
            "counts": {"type": counts},
        }


def bleu_metrics(counts: np.ndarray) -> dict[str, CorpusMetric]:
    """Return BLEU over images by the names `BLEU-1` to `BLEU-4`, each as a `CorpusMetric`, whose value is in [0, 1].

    Args:
        counts: The counts of each image as `bleu_counts` returns them, shape `(images 10)`.
    """
    metrics = {}
    for num_words in range(1, MOST_WORDS + 1):
        combine = partial(bleu_of_counts, num_words=num_words)
        metrics[f"BLEU-{num_words}"] = CorpusMetric(counts, combine)
    return metrics


def meteor_metric(counts: np.ndarray) -> CorpusMetric:
    """Return METEOR as a `CorpusMetric`, which computes it, in [0, 1], for any selection of the images.

    The METEOR of several images is computed from the sums of their counts; it is no mean of the images' own METEOR.

    Args:
        counts: The counts of each image as `meteor_counts` returns them, shape `(images 23)`.
    """
    return CorpusMetric(counts, meteor_of_counts)


class CaptionScorer:
    """Score captions of the same images, for example of several systems; the references are tokenised only once.

    Args:
        references: The references of each image, by the image's id as text.
        tokenizer: `ptb_keep_punctuation` keeps punctuation when captions are compared; `ptb`, and any other text, drops
            it.
        frequencies_of: Other references, by the ids of their images, in which CIDEr counts how rare a word is; None
            counts it in `references`.
        report: A function that is called with the name of each step, for example "METEOR", before the step begins.
    """

    def __init__(
        self,
        references: Mapping[str, Sequence[str]],
        tokenizer: str = "ptb",
        frequencies_of: Mapping[str, Sequence[str]] | None = None,
        report: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._references = references
        self._tokenizer = tokenizer
        self._frequencies_of = frequencies_of
        self._report = report

    @cached_property
    def _tokenised(self) -> dict[str, list[str]]:
        """The tokenised references by the image's id, sorted by id."""
        self._report("tokenising the references")
        # Sorted, so that the order of the files changes neither draws nor sums.
        in_order = {key: self._references[key] for key in sorted(self._references)}
        tokenised = tokenise(in_order, self._tokenizer)

        # Every metric divides by the lengths of references.
        wordless = [key for key, texts in tokenised.items() if not any(texts)]
        refuse_ids(wordless, "images have no reference with a word in it")
        return tokenised

    @cached_property
    def _ngrams(self) -> ReferenceNgrams:
        return ReferenceNgrams(self._tokenised)

    @cached_property
    def _ngrams_of_others(self) -> ReferenceNgrams | None:
        """The n-grams in which document frequencies are counted; None if those are the references themselves."""
        if self._frequencies_of is None:
            return None

        self._report("counting document frequencies")
        tokenised = tokenise(self._frequencies_of, self._tokenizer)
        return ReferenceNgrams(tokenised)

    def score(self, predictions: Mapping[str, str], metrics: Sequence[str] = METRICS) -> CaptionScores:
        """Score one caption for each image.

        Args:
            predictions: The caption of each image, by the ids of the references.
            metrics: The metrics to compute, out of `BLEU` (which gives `BLEU-1` to `BLEU-4`), `METEOR`, `ROUGE-L` and
                `CIDEr`.

        Returns:
            The scores, with the images in the order of their ids as text.

        Raises:
            ConfigError: If there is no metric of such a name, captions and references are not of the same images, or an
                image has no reference with a word in it. The message names the metrics, or the first five ids.
            RuntimeError: If the Java program of the tokenizer or of METEOR fails.
        """
        _check_metrics(metrics)
        check_same_ids(predictions, self._references)
        references = self._tokenised
        self._report("tokenising captions")
        in_order = {key: [predictions[key]] for key in references}
        captions = tokenise(in_order, self._tokenizer)

        scores: dict[str, CorpusMetric] = {}
        if "BLEU" in metrics:
            self._report("BLEU")
            counts = bleu_counts(references, captions)
            scores |= bleu_metrics(counts)

        if "METEOR" in metrics:
            self._report("METEOR")
            counts = meteor_counts(references, captions)
            scores["METEOR"] = meteor_metric(counts)

        if "ROUGE-L" in metrics:
            self._report("ROUGE-L")
            _, of_images = Rouge().compute_score(references, captions)
            scores["ROUGE-L"] = mean_metric(of_images)

        if "CIDEr" in metrics:
            self._report("CIDEr")
            texts = [captions[key][0] for key in references]
            of_images = cider_scores(self._ngrams, texts, self._ngrams_of_others)
            scores["CIDEr"] = mean_metric(of_images)

        return CaptionScores(scores, list(references))


def score_captions(
    predictions: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    metrics: Sequence[str] = METRICS,
    report: Callable[[str], None] = lambda _: None,
) -> CaptionScores:
    """Score one caption for each image against its references, after a tokenizer that drops punctuation.

    `CaptionScorer` does the same for several captions of the same images, and has further settings.

    Args:
        predictions: The caption of each image, by the image's id as text.
        references: The references of each image, by the same ids.
        metrics: The metrics to compute, out of `BLEU` (which gives `BLEU-1` to `BLEU-4`), `METEOR`, `ROUGE-L` and
            `CIDEr`.
        report: A function that is called with the name of each step, for example "METEOR", before the step begins.

    Returns:
        The scores, with the images in the order of their ids as text.

    Raises:
        ConfigError: If there is no metric of such a name, captions and references are not of the same images, or an
            image has no reference with a word in it. The message names the metrics, or the first five ids.
        RuntimeError: If the Java program of the tokenizer or of METEOR fails.
    """
    scorer = CaptionScorer(references, report=report)
    return scorer.score(predictions, metrics)


def _check_metrics(metrics: Sequence[str]) -> None:
    """Refuse names that are none of `METRICS`: a score that silently lacks a metric would be noticed late."""
    unknown = [name for name in metrics if name not in METRICS]
    if unknown:
        raise ConfigError(f"metrics={', '.join(unknown)}: choose from {', '.join(METRICS)}")


def check_same_ids(predictions: Mapping[str, object], references: Mapping[str, object]) -> None:
    """Check that predictions and references are of the same images.

    Args:
        predictions: Predictions by the image's id as text.
        references: References by the image's id as text.

    Raises:
        ConfigError: If an image has a prediction without references, or references without a prediction (the message
            names the first five ids), or if there are no references at all.
    """
    # No shared id at all has another cause than a missing one, and its message says so.
    shared_ids = predictions.keys() & references.keys()
    if predictions and references and not shared_ids:
        first = ", ".join(sorted(predictions)[:5])
        raise ConfigError(
            f"0 of {len(predictions)} predictions are of one of the {len(references)} images with references, first "
            f"{first}: is this another split, or another data set?"
        )

    refuse_ids(set(predictions) - set(references), "predictions are of images without references")
    refuse_ids(set(references) - set(predictions), "images have no prediction")
    if not references:
        raise ConfigError("there are no references")
