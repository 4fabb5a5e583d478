"""The results of inspecting a connector, as objects, and as `inspect.json` holds them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from visllama.inspect.connector.ablation_scores import AblationScore
from visllama.inspect.connector.lens import ScoredTokens
from visllama.inspect.connector.vectors import Norms, PictureReading, TokenReading, VectorFacts


@dataclass(frozen=True)
class ShownPicture:
    """A picture that the page shows, with its caption, the tokens of its vectors, and the attention of its words.

    Attributes:
        key: The picture's id.
        caption: The caption that the model writes when nothing is left out.
        cider: The caption's CIDEr, on pycocoevalcap's scale (1 is printed as 100).
        references: The picture's reference captions.
        reading: The vocabulary tokens that fit each of the picture's image vectors best.
        words: The words of the caption, in their order.
        attention: For each word a list of K shares in [0, 1]: how much of the word's attention each image vector has,
            as the mean over layers and heads. The rest of the attention goes to other tokens.
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
    """All results of inspecting a connector.

    Attributes:
        about: What was inspected, by the keys of `inspect.json`: `weights`, `connector`, `num_image_tokens` (K),
            `is_patch_grid`, `evaluation`, `split`, `n` (the number of pictures), `decoding`, `prompt`, `template`.
        findings: The main results as sentences.
        ablations: The score of each ablation; `whole`, under which nothing is left out, comes first.
        vectors: The statistics of each of the K image vectors, in their order.
        markers: The tokens nearest to the markers, each with its cosine, under "boi" and "eoi".
        norms: The Euclidean norms of image vectors, markers and text embeddings.
        pictures: The pictures that the page shows one by one.
    """

    about: dict[str, Any]
    findings: list[str]
    ablations: list[AblationScore]
    vectors: list[VectorFacts]
    markers: dict[str, ScoredTokens]
    norms: Norms
    pictures: list[ShownPicture]

    def of_kind(self, kind: str) -> list[AblationScore]:
        """Return the scores of all ablations of one kind (see `Ablation.kind`), in their order; maybe none."""
        return [score for score in self.ablations if score.ablation.kind == kind]

    def to_dict(self) -> dict[str, Any]:
        """Return all results as plain values for JSON: the keys of `about`, then a key for each other attribute."""
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

    # Left out, not null, where the language model has no unembedding that is known.
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
