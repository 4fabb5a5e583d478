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

    They state what the pictures, each image vector and the markers around an image are worth in CIDEr, how much the
    vectors change with the picture, which words they name, and how long they are.

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
    right = cider(whole.cider)
    wrong = cider(shuffled.cider)
    none = cider(blank.cider)

    return f"CIDEr is {right} with the pictures, {wrong} with shuffled ones and {none} with blank ones."


def _removed(scores: Sequence[AblationScore]) -> str:
    worst = _worst(scores)
    spared = _count_spared(scores)
    return f"Removed, {worst} {spared} can be removed without a measurable loss."


def _fixed(scores: Sequence[AblationScore]) -> str:
    worst = _worst(scores)
    spared = _count_spared(scores)
    return f"Held at its mean over the pictures, {worst} {spared} can be held without a measurable loss."


def _worst(scores: Sequence[AblationScore]) -> str:
    # The most negative difference is the largest loss.
    worst = min(scores, key=lambda score: score.difference)
    place = place_name(worst.ablation.vectors)
    difference = signed(worst.difference)

    return f"vector {place} costs most: {difference} ({interval(worst)})."


def _count_spared(scores: Sequence[AblationScore]) -> str:
    # One whose interval of the difference holds zero, or lies above it, has cost nothing that can be measured.
    spared = []
    for score in scores:
        _, high = score.interval
        if high >= 0:
            spared.append(score)

    num_spared = len(spared)
    num_scores = len(scores)
    if num_spared == 0:
        return "None"
    if num_spared == num_scores:
        return "Each of them, one at a time,"
    if num_spared > _MOST_LISTED:
        return f"{num_spared} of {num_scores}, one at a time,"

    places = [place_name(score.ablation.vectors) for score in spared]
    listed_places = ", ".join(places)
    return f"{num_spared} of {num_scores} ({listed_places}), one at a time,"


def _alone(whole: AblationScore, frozen: AblationScore, scores: Sequence[AblationScore]) -> str:
    best = max(scores, key=lambda score: score.cider)
    place = place_name(best.ablation.vectors)

    lowest = cider(frozen.cider)
    reached = cider(best.cider)
    highest = cider(whole.cider)
    return (
        f"With all vectors held at their means CIDEr is {lowest}; let vector {place} alone change with the picture, "
        f"and it is {reached} ({interval(best)}) of {highest}."
    )


def _markers(score: AblationScore) -> str:
    difference = signed(score.difference)
    return f"Without the two markers: {difference} ({interval(score)})."


def _varies(vectors: Sequence[VectorFacts]) -> str:
    least = min(vectors, key=lambda facts: facts.varies)
    most = max(vectors, key=lambda facts: facts.varies)

    low = f"{least.varies:.0%} (vector {least.vector})"
    high = f"{most.varies:.0%} (vector {most.vector})"
    return f"From {low} to {high} of a vector changes with the picture; the rest is the same for all."


def _tokens(vectors: Sequence[VectorFacts]) -> str:
    def beyond_chance(facts: VectorFacts) -> float:
        # A vector that names frequent words is right often without looking.
        words = facts.nearest.words
        return words.own - words.other

    best = max(vectors, key=beyond_chance)
    words = best.nearest.words
    own = f"{words.own:.0%}"
    others = f"{words.other:.0%}"
    low, high = words.interval
    points = f"{100 * low:+.0f} to {100 * high:+.0f} points"

    cosines = [facts.nearest.mean_score for facts in vectors]
    lowest = min(cosines)
    highest = max(cosines)
    return (
        f"The nearest token has a cosine of {lowest:.2f} to {highest:.2f}. By its five nearest, vector "
        f"{best.vector} says most: they hold a word of the picture's own references in {own} of the pictures, "
        f"of others' in {others} (95% of the difference: {points})."
    )


def _named(vectors: Sequence[VectorFacts]) -> str:
    # Of each word only the vector that names it best is told.
    best_of_word: dict[str, tuple[float, str]] = {}
    for facts in vectors:
        named_words = list(facts.nearest.words.named)
        if facts.unembedding is not None:
            named_words += facts.unembedding.words.named

        for word in named_words:
            right_by_chance = word.times * word.base
            beyond_chance = word.right - right_by_chance
            text = f"{word.word} by vector {facts.vector} ({word.right} right of {word.times})"

            earlier = best_of_word.get(word.word, (0.0, ""))
            best_of_word[word.word] = max(earlier, (beyond_chance, text))

    if not best_of_word:
        return "No vector names a word of the references more often than chance would have it."

    ranked_words = sorted(best_of_word.values(), reverse=True)
    texts = [text for _, text in ranked_words[:_MOST_WORDS]]
    listed_texts = ", ".join(texts)
    return f"Named more often than by chance: {listed_texts}."


def _length(norms: Norms) -> str:
    # The quantile in the middle is the median.
    middle = len(norms["quantiles"]) // 2
    image = norms["image_vectors"][middle]
    text = norms["text_embeddings"][middle]

    times = f"{image / text:.1f}"
    medians = f"{image:.2f} and {text:.2f}"
    return f"An image vector is {times} times as long as a text embedding (medians {medians})."
