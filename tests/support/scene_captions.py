"""Captions of the embedded world's scenes, without their pictures, and the same with slips."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from visllama.data.scenes.language import captions
from visllama.data.scenes.world import scene_of


def scene_captions(num_images: int, num_references: int) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Return the references of scenes, and one caption more of each, which is as good as a person's."""
    references: dict[str, list[str]] = {}
    more: dict[str, str] = {}
    for index in range(num_images):
        scene, dice = scene_of("test", index)
        *texts, one_more = captions(scene, dice, num_references + 1)
        key = f"{index:06d}"
        references[key] = texts
        more[key] = one_more
    return references, more


def wrong_words(texts: Mapping[str, str], share: float, seed: int) -> dict[str, str]:
    """Return captions in which each word is, by chance, another one of those that are used, as often as it is used."""
    rng = np.random.default_rng(seed)
    used = [word for text in texts.values() for word in text.split()]
    found = {}
    for key, text in texts.items():
        words = text.split()
        for place in range(len(words)):
            if rng.random() < share:
                words[place] = used[rng.integers(len(used))]
        found[key] = " ".join(words)
    return found
