"""Score captions as COCO does: BLEU, METEOR, ROUGE-L and CIDEr after the PTB tokenizer.

Scores are on pycocoevalcap's own scale (CIDEr 1.13; tables print x100).
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
    """The metrics of captions, each over the images of `ids`, in their order."""

    metrics: dict[str, CorpusMetric]
    ids: list[str]

    @property
    def values(self) -> dict[str, float]:
        """Each metric over all images."""
        return {name: metric.value for name, metric in self.metrics.items()}

    def by_type(self, types: Mapping[str, str]) -> dict[str, dict]:
        """Return what metrics.json says of each type of image: `by_type`, each metric; `intervals_by_type`; `counts`.

        All images stay the one corpus in which CIDEr counts its document frequencies.

        Args:
            types: The type of each image that has one, by its id. Where no image has one, nothing is returned.
        """
        of_image = np.array([types.get(key, "") for key in self.ids])
        scores: dict[str, dict[str, float]] = {}
        intervals: dict[str, dict[str, list[float]]] = {}
        counts: dict[str, int] = {}
        for value in sorted(set(of_image.tolist()) - {""}):
            rows = of_image == value
            counts[value] = int(rows.sum())
            parts = {name: metric._replace(terms=metric.terms[rows]) for name, metric in self.metrics.items()}
            scores[value] = {name: part.value for name, part in parts.items()}
            if counts[value] > 1:  # of one image alone nothing can be drawn again
                intervals[value] = bootstrap_intervals(parts)
        if not scores:
            return {}
        return {"by_type": {"type": scores}, "intervals_by_type": {"type": intervals}, "counts": {"type": counts}}


def bleu_metrics(counts: np.ndarray) -> dict[str, CorpusMetric]:
    """Return BLEU-1 to BLEU-4 of the counts of each image, shape `(images 10)`."""
    lengths = range(1, MOST_WORDS + 1)
    return {f"BLEU-{n}": CorpusMetric(counts, partial(bleu_of_counts, num_words=n)) for n in lengths}


def meteor_metric(counts: np.ndarray) -> CorpusMetric:
    """Return METEOR of the counts of each image, shape `(images 23)`."""
    return CorpusMetric(counts, meteor_of_counts)


class CaptionScorer:
    """Score several captionings of the same images, whose references are tokenised once.

    Args:
        references: The references of each image, by its id.
        tokenizer: The name of a tokenizer of `ptb_tokenizer.tokenise`.
        frequencies_of: The references of other images, by their ids, in which CIDEr counts its document frequencies;
            None counts them in `references`.
        report: Is called with what is done next, in words.
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
        """The references, sorted by id."""
        self._report("tokenising the references")
        tokenised = tokenise({key: self._references[key] for key in sorted(self._references)}, self._tokenizer)
        wordless = [key for key, texts in tokenised.items() if not any(texts)]
        refuse_ids(wordless, "images have no reference with a word in it")
        return tokenised

    @cached_property
    def _ngrams(self) -> ReferenceNgrams:
        return ReferenceNgrams(self._tokenised)

    @cached_property
    def _ngrams_of_others(self) -> ReferenceNgrams | None:
        """The n-grams of the references in which document frequencies are counted; None where they are those scored."""
        if self._frequencies_of is None:
            return None
        self._report("counting document frequencies")
        return ReferenceNgrams(tokenise(self._frequencies_of, self._tokenizer))

    def score(self, predictions: Mapping[str, str], metrics: Sequence[str] = METRICS) -> CaptionScores:
        """Score one caption an image.

        Args:
            predictions: The caption of each image, by its id.
            metrics: Of `BLEU`, `METEOR`, `ROUGE-L` and `CIDEr`.

        Raises:
            ConfigError: If they are not of the images of the references, or an image has no reference with a word in
                it, naming the first five.
        """
        check_same_ids(predictions, self._references)
        references = self._tokenised
        self._report("tokenising captions")
        captions = tokenise({key: [predictions[key]] for key in references}, self._tokenizer)

        scored: dict[str, CorpusMetric] = {}
        if "BLEU" in metrics:
            self._report("BLEU")
            scored |= bleu_metrics(bleu_counts(references, captions))
        if "METEOR" in metrics:
            self._report("METEOR")
            scored["METEOR"] = meteor_metric(meteor_counts(references, captions))
        if "ROUGE-L" in metrics:
            self._report("ROUGE-L")
            scored["ROUGE-L"] = mean_metric(Rouge().compute_score(references, captions)[1])
        if "CIDEr" in metrics:
            self._report("CIDEr")
            in_order = [captions[key][0] for key in references]
            scored["CIDEr"] = mean_metric(cider_scores(self._ngrams, in_order, self._ngrams_of_others))
        return CaptionScores(scored, list(references))


def score_captions(
    predictions: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    metrics: Sequence[str] = METRICS,
    report: Callable[[str], None] = lambda _: None,
) -> CaptionScores:
    """Score one caption an image against its references, as `CaptionScorer` does."""
    return CaptionScorer(references, report=report).score(predictions, metrics)


def check_same_ids(predictions: Mapping[str, object], references: Mapping[str, object]) -> None:
    """Refuse predictions for unknown images, and images without one."""
    if predictions and references and not predictions.keys() & references.keys():
        raise ConfigError(
            f"0 of {len(predictions)} predictions are of one of the {len(references)} images with references, first "
            f"{', '.join(sorted(predictions)[:5])}: is this another split, or another data set?"
        )
    refuse_ids(set(predictions) - set(references), "predictions are of images without references")
    refuse_ids(set(references) - set(predictions), "images have no prediction")
    if not references:
        raise ConfigError("there are no references")
