"""What might be found of a connector of three vectors, in round figures."""

from __future__ import annotations

from visllama.inspect.connector.ablation_scores import AblationScore
from visllama.inspect.connector.ablations import (
    ALL_FROZEN,
    ALONE,
    BLANK,
    FROZEN,
    NO_MARKERS,
    REMOVED,
    SHUFFLED,
    WHOLE,
    Ablation,
)
from visllama.inspect.connector.findings import find
from visllama.inspect.connector.study import ConnectorStudy, ShownPicture
from visllama.inspect.connector.vectors import PictureReading, TokenReading, VectorFacts
from visllama.inspect.connector.words import NamedWord, WordMatch

RISKY = "<script>alert(1)</script>"
NORMS = {
    "quantiles": [0.05, 0.25, 0.5, 0.75, 0.95], "image_vectors": [2.0, 3.0, 4.0, 5.0, 6.0],
    "text_embeddings": [0.5, 0.8, 1.0, 1.2, 2.0], "boi": 0.5, "eoi": 0.25,
}  # fmt: skip


def score(kind: str, vectors: tuple[int, ...], cider: float, spread: float = 0.05) -> AblationScore:
    """Return a score beside a whole of 1.0, and 0.25 with all at their means."""
    difference = cider - (0.25 if kind == ALONE else 1.0)
    changed = float(difference != 0)
    return AblationScore(
        Ablation(kind, vectors), cider, difference, [difference - spread, difference + spread], changed
    )


def scores() -> list[AblationScore]:
    general = [
        AblationScore(Ablation(WHOLE), 1.0, 0.0, [0.0, 0.0], 0.0),
        score(SHUFFLED, (), 0.3),
        score(BLANK, (), 0.2),
        score(ALL_FROZEN, (), 0.25),
        score(NO_MARKERS, (), 0.99),
    ]
    of_vectors = []
    for kind, values in ((REMOVED, (1.0, 0.6, 0.97)), (FROZEN, (0.98, 0.5, 0.7)), (ALONE, (0.3, 0.75, 0.26))):
        of_vectors += [score(kind, (k + 1,), value) for k, value in enumerate(values)]
    return general + of_vectors


def reading(own: float, named: list[NamedWord]) -> TokenReading:
    match = WordMatch(own, 0.2, [own - 0.25, own - 0.15], named)
    return TokenReading([("Ġred", 0.5), ("<s>", 0.25)], 0.4, match)


def facts(vector: int, varies: float, own: float = 0.2, named: tuple[NamedWord, ...] = ()) -> VectorFacts:
    return VectorFacts(vector, 4.0, varies, reading(own, list(named)), reading(0.2, []), [("Ġred", 0.3)] * 5)


def vectors() -> list[VectorFacts]:
    red = NamedWord("red", 9, 10, 0.25)
    return [facts(1, 0.02), facts(2, 0.9, 0.6, (red,)), facts(3, 0.4)]


def study(risky: bool = False) -> ConnectorStudy:
    """Return what might be found; where it is risky, data says what a page must not obey."""
    said = RISKY if risky else "a red circle"
    rows = [[(RISKY if risky else "Ġred", 0.5)] * 5] * 3
    picture = ShownPicture(
        said,
        said,
        1.2,
        ["a red ring", said],
        PictureReading(rows, rows),
        said.split(),
        [[0.1, 0.2, 0.3]] * len(said.split()),
    )
    about = {
        "weights": said, "connector": {"kind": "MLPConnector", "arguments": {}}, "num_image_tokens": 3,
        "is_patch_grid": False, "evaluation": "scenes_caption", "split": "test", "n": 100,
    }  # fmt: skip
    return ConnectorStudy(
        about, find(scores(), vectors(), NORMS), scores(), vectors(), {"boi": [("a", 0.1)], "eoi": [("b", 0.2)]}, NORMS,
        [picture],
    )  # fmt: skip
