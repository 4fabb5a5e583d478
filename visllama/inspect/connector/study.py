"""All that is found of a connector, as `inspect.json` holds it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from visllama.inspect.connector.ablation_scores import AblationScore
from visllama.inspect.connector.lens import ScoredTokens
from visllama.inspect.connector.vectors import Norms, PictureReading, TokenReading, VectorFacts


@dataclass(frozen=True)
class ShownPicture:
    """A picture that is shown, and what was written and read of it.

    Attributes:
        key: The picture's id.
        caption: The caption that the model writes when nothing is left out.
        cider: The caption's CIDEr, on pycocoevalcap's scale.
        references: The picture's references.
        reading: How its vectors are read.
        words: The words of the caption.
        attention: For each word the share of its attention that each vector has, as a table `(words, K)`; the mean
            over layers and heads.
    """

    key: str
    caption: str
    cider: float
    references: list[str]
    reading: PictureReading
    words: list[str]
    attention: list[list[float]]


@dataclass(frozen=True)
class ConnectorStudy:
    """All that is found of a connector.

    Attributes:
        about: What was looked at: weights, connector, K, evaluation, split, n, decoding, prompt, template.
        findings: What stands out, in sentences.
        ablations: The score of each ablation, the whole first.
        vectors: The facts about each vector.
        markers: The tokens nearest to `[boi]` and `[eoi]`, with their cosines.
        norms: The lengths of vectors, markers and text embeddings.
        pictures: The pictures that are shown.
    """

    about: dict[str, Any]
    findings: list[str]
    ablations: list[AblationScore]
    vectors: list[VectorFacts]
    markers: dict[str, ScoredTokens]
    norms: Norms
    pictures: list[ShownPicture]

    def of_kind(self, kind: str) -> list[AblationScore]:
        """Return the scores of one kind of ablation."""
        return [score for score in self.ablations if score.ablation.kind == kind]

    def to_dict(self) -> dict[str, Any]:
        """Return the study as `inspect.json` holds it."""
        # What was looked at stands first, so that a reader of the file sees it at once.
        return {
            **self.about,
            "findings": self.findings,
            "ablations": [_ablation(score) for score in self.ablations],
            "vectors": [_vector(facts) for facts in self.vectors],
            "markers": {name: _tokens(tokens, "cosine") for name, tokens in self.markers.items()},
            "norms": self.norms,
            "pictures": [_picture(picture) for picture in self.pictures],
        }


def _ablation(score: AblationScore) -> dict[str, Any]:
    return {
        **asdict(score.ablation),
        "CIDEr": score.cider,
        "compared_with": score.ablation.baseline,
        "difference": score.difference,
        "interval": score.interval,
        "changed": score.changed,
    }


def _vector(facts: VectorFacts) -> dict[str, Any]:
    row: dict[str, Any] = {
        "vector": facts.vector,
        "norm": facts.norm,
        "varies": facts.varies,
        "nearest": _reading(facts.nearest, "mean_cosine"),
        "nearest_to_mean": _tokens(facts.mean_nearest, "cosine"),
    }
    if facts.unembedding is not None:
        row["unembedding"] = _reading(facts.unembedding, "mean_probability")
    return row


def _reading(reading: TokenReading, score: str) -> dict[str, Any]:
    return {
        "first_tokens": _tokens(reading.tokens, "share_of_pictures"),
        score: reading.mean_score,
        "own_words": reading.words.own,
        "other_words": reading.words.other,
        "interval": reading.words.interval,
        "named": [named._asdict() for named in reading.words.named],
    }


def _tokens(tokens: ScoredTokens, score: str) -> list[dict[str, Any]]:
    return [{"token": token, score: value} for token, value in tokens]


def _picture(picture: ShownPicture) -> dict[str, Any]:
    reading = picture.reading
    # Vectors are counted from 1 in files, tables and on the page.
    vectors = []
    for k, nearest in enumerate(reading.nearest):
        row: dict[str, Any] = {"vector": k + 1, "nearest": _tokens(nearest, "cosine")}
        if reading.unembedding is not None:
            row["unembedding"] = _tokens(reading.unembedding[k], "probability")
        vectors.append(row)

    return {
        "key": picture.key,
        "caption": picture.caption,
        "CIDEr": picture.cider,
        "references": picture.references,
        "vectors": vectors,
        "words": picture.words,
        "attention": picture.attention,
    }
