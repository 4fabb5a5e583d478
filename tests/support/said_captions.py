"""Captions whose scores were published, with their references."""

from __future__ import annotations

import numpy as np

REFERENCES = {
    "one": ["two cats are sleeping next to each other.", "a grey cat is cuddling with an orange cat on a blanket.", "the orange cat is happy that the black cat is close to it."],
    "two": ["a dog is wearing ear muffs as it lies on a carpet.", "a black dog and an orange cat are looking at the photographer.", "headphones are placed on a dogs ears."],
}  # fmt: skip


GOOD = {"one": "an orange cat and a grey cat are lying together.", "two": "a black dog wearing headphones looks at the camera as an orange cat walks in the background."}  # fmt: skip


NASTY = [
    "a cat\ron a mat",
    "a\u2028dog",
    "\u2029",
    "",
    "   ",
    "🐱🐶",
    "a ||| b",
    "a\x0bb\x0cc\x85d",
    "\n\n",
    '<script>alert("x")</script>',
    "-LRB- ... --",
    "last one",
]
"""Captions that hold what separates lines, or nothing."""


def make_corpus(num_images: int, seed: int = 0) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Return tokenised references, five an image, and a caption of each, which is right but for some words.

    The words are common and rare, so that document frequencies matter.
    """
    rng = np.random.default_rng(seed)
    words = [f"w{number}" for number in range(300)]
    shares = 1 / np.arange(1, 301)
    shares /= shares.sum()
    references, captions = {}, {}
    for image in range(num_images):
        subject = [words[number] for number in rng.choice(300, 9, p=shares)]
        sentences = []
        for _ in range(6):
            length = int(rng.integers(6, 10))
            is_other = rng.random(length) < 0.4
            others = [words[number] for number in rng.choice(300, length, p=shares)]
            sentences.append(" ".join(others[i] if is_other[i] else subject[i] for i in range(length)))
        *references[f"{image:05d}"], caption = sentences
        captions[f"{image:05d}"] = [caption]
    return references, captions
