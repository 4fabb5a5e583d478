"""Captions whose scores were published, with their references."""

from __future__ import annotations

REFERENCES = {
    "one": ["two cats are sleeping next to each other.", "a grey cat is cuddling with an orange cat on a blanket.", "the orange cat is happy that the black cat is close to it."],
    "two": ["a dog is wearing ear muffs as it lies on a carpet.", "a black dog and an orange cat are looking at the photographer.", "headphones are placed on a dogs ears."],
}  # fmt: skip


GOOD = {"one": "an orange cat and a grey cat are lying together.", "two": "a black dog wearing headphones looks at the camera as an orange cat walks in the background."}  # fmt: skip
