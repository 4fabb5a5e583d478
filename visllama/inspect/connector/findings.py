"""Write the main results of inspecting a connector as sentences. CIDEr is printed x100 here, as in papers."""

from __future__ import annotations

from collections.abc import Sequence

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
    place_name,
)
from visllama.inspect.connector.vectors import Norms, VectorFacts

_MOST_LISTED = 12
_MOST_WORDS = 6


def find(scores: Sequence[AblationScore], vectors: Sequence[VectorFacts], norms: Norms) -> list[str]:
    """Return the nine findings about a connector, a sentence or two each, always in the same order.

    They tell what the pictures, each vector and the markers are worth in CIDEr, how much the vectors change with the
    picture, which words they name, and how long they are.

    Args:
        scores: The scores of all ablations that `list_ablations` lists, in any order.
        vectors: The statistics of each image vector.
        norms: The norms of image vectors, markers and text embeddings.
    """
    by_kind: dict[str, list[AblationScore]] = {}
    for score in scores:
        by_kind.setdefault(score.ablation.kind, []).append(score)

    whole = by_kind[WHOLE][0]
    return [
        _sight(whole, by_kind[SHUFFLED][0], by_kind[BLANK][0]),
        _removed(by_kind[REMOVED]),
        _fixed(by_kind[FROZEN]),
        _alone(whole, by_kind[ALL_FROZEN][0], by_kind[ALONE]),
        _markers(by_kind[NO_MARKERS][0]),
        _varies(vectors),
        _tokens(vectors),
        _named(vectors),
        _length(norms),
    ]


def cider(value: float) -> str:
    """Return a CIDEr on pycocoevalcap's scale as it is printed: x100, with one decimal (1.134 gives "113.4")."""
    return f"{100 * value:.1f}"


def signed(value: float) -> str:
    """Return a difference of two CIDErs as it is printed: x100, with its sign and one decimal; "0.0" for none."""
    # Rounded first, so that a difference of nothing has no sign.
    rounded = round(100 * value, 1)
    return f"{rounded:+.1f}" if rounded else "0.0"


def interval(score: AblationScore) -> str:
    """Return the interval of a score's difference as it is printed, CIDEr x100: "-3.1 to +0.4"."""
    low, high = score.interval
    return f"{signed(low)} to {signed(high)}"


def _sight(whole: AblationScore, shuffled: AblationScore, blank: AblationScore) -> str:
    return (
        f"CIDEr is {cider(whole.cider)} with the pictures, {cider(shuffled.cider)} with shuffled ones and "
        f"{cider(blank.cider)} with blank ones."
    )


def _removed(scores: Sequence[AblationScore]) -> str:
    return f"Removed, {_worst(scores)} {_count_spared(scores)} can be removed without a measurable loss."


def _fixed(scores: Sequence[AblationScore]) -> str:
    text = f"Held at its mean over the pictures, {_worst(scores)}"
    return f"{text} {_count_spared(scores)} can be held without a measurable loss."


def _worst(scores: Sequence[AblationScore]) -> str:
    # The most negative difference is the largest loss.
    worst = min(scores, key=lambda score: score.difference)
    place = place_name(worst.ablation.vectors)

    return f"vector {place} costs most: {signed(worst.difference)} ({interval(worst)})."


def _count_spared(scores: Sequence[AblationScore]) -> str:
    # One whose interval of the difference holds zero, or lies above it, has cost nothing that can be measured.
    spared = [score for score in scores if score.interval[1] >= 0]
    if not spared:
        return "None"
    if len(spared) == len(scores):
        return "Each of them, one at a time,"
    if len(spared) > _MOST_LISTED:
        return f"{len(spared)} of {len(scores)}, one at a time,"

    listed = ", ".join(place_name(score.ablation.vectors) for score in spared)
    return f"{len(spared)} of {len(scores)} ({listed}), one at a time,"


def _alone(whole: AblationScore, frozen: AblationScore, scores: Sequence[AblationScore]) -> str:
    best = max(scores, key=lambda score: score.cider)

    return (
        f"With all vectors held at their means CIDEr is {cider(frozen.cider)}; let vector "
        f"{place_name(best.ablation.vectors)} alone change with the picture, and it is {cider(best.cider)} "
        f"({interval(best)}) of {cider(whole.cider)}."
    )


def _markers(score: AblationScore) -> str:
    return f"Without the two markers: {signed(score.difference)} ({interval(score)})."


def _varies(vectors: Sequence[VectorFacts]) -> str:
    least = min(vectors, key=lambda facts: facts.varies)
    most = max(vectors, key=lambda facts: facts.varies)

    return (
        f"From {least.varies:.0%} (vector {least.vector}) to {most.varies:.0%} (vector {most.vector}) of a vector "
        "changes with the picture; the rest is the same for all."
    )


def _tokens(vectors: Sequence[VectorFacts]) -> str:
    # By how much it beats chance: a vector that names frequent words is right often without looking.
    best = max(vectors, key=lambda facts: facts.nearest.words.own - facts.nearest.words.other)
    cosines = [facts.nearest.mean_score for facts in vectors]

    words = best.nearest.words
    low, high = words.interval
    return (
        f"The nearest token has a cosine of {min(cosines):.2f} to {max(cosines):.2f}. By its five nearest, vector "
        f"{best.vector} says most: they hold a word of the picture's own references in {words.own:.0%} of the "
        f"pictures, of others' in {words.other:.0%} (95% of the difference: {100 * low:+.0f} to {100 * high:+.0f} "
        "points)."
    )


def _named(vectors: Sequence[VectorFacts]) -> str:
    # Of each word only the vector that names it best is told.
    best_of_word: dict[str, tuple[float, str]] = {}
    for facts in vectors:
        named = list(facts.nearest.words.named)
        if facts.unembedding is not None:
            named += facts.unembedding.words.named

        for word in named:
            beyond_chance = word.right - word.times * word.base
            text = f"{word.word} by vector {facts.vector} ({word.right} right of {word.times})"
            earlier = best_of_word.get(word.word, (0.0, ""))
            best_of_word[word.word] = max(earlier, (beyond_chance, text))

    if not best_of_word:
        return "No vector names a word of the references more often than chance would have it."

    ranked = sorted(best_of_word.values(), reverse=True)
    texts = [text for _, text in ranked[:_MOST_WORDS]]
    return f"Named more often than by chance: {', '.join(texts)}."


def _length(norms: Norms) -> str:
    # The quantile in the middle is the median.
    middle = len(norms["quantiles"]) // 2
    image = norms["image_vectors"][middle]
    text = norms["text_embeddings"][middle]

    return (
        f"An image vector is {image / text:.1f} times as long as a text embedding (medians {image:.2f} and {text:.2f})."
    )
