"""What a vector is like: norms and variance by hand, and the tokens that it is read by."""

from __future__ import annotations

import pytest
import torch

from tests.support.looked_at import loud_model
from visllama.inspect.connector.lens import Lens
from visllama.inspect.connector.vectors import VectorStudy, norm_quantiles, variance_shares


@pytest.fixture(scope="module")
def lens():
    return Lens(loud_model())


def token(lens, word: str) -> int:
    (found,) = lens.tokenizer.encode(word, add_special_tokens=False)
    return found


def test_the_share_that_varies():
    """One vector never changes; one has no mean; one is 3 with a deviation of 1: 1 / (9 + 1)."""
    vectors = torch.tensor([[[5.0], [1.0], [4.0]], [[5.0], [-1.0], [2.0]]])
    assert variance_shares(vectors).tolist() == pytest.approx([0, 1, 0.1])
    assert variance_shares(torch.zeros(2, 1, 3)).tolist() == [0]


def test_vectors_are_read_picture_by_picture(lens):
    """The first vector is an embedding that goes with the picture's references, the second is always the same."""
    red, ring = token(lens, " red"), token(lens, " ring")  # neither is among the five nearest of the other
    embeds = torch.stack([lens.embeddings[[red, ring]], lens.embeddings[[ring, ring]]])
    references = [["a red thing"], ["a ring"]]
    study = VectorStudy(embeds.repeat(10, 1, 1), lens, references * 10)
    first, second = study.vectors
    assert (first.vector, second.vector) == (1, 2) and second.varies == pytest.approx(0, abs=1e-6)
    names = dict(first.nearest.tokens)
    assert {lens.names([red])[0]: 0.5, lens.names([ring])[0]: 0.5} == names
    assert first.nearest.mean_score == pytest.approx(1, abs=1e-6)
    assert {word.word for word in first.nearest.words.named} >= {"red", "ring"}
    assert second.nearest.words.named == [] and second.nearest.tokens == [(lens.names([ring])[0], 1.0)]
    assert second.mean_nearest[0] == (lens.names([ring])[0], 1.0)
    assert second.norm == pytest.approx(lens.embeddings[ring].norm().item())
    reading = study.picture(1)
    assert [tokens[0][0] for tokens in reading.nearest] == lens.names([ring, ring])
    assert len(reading.unembedding) == 2 and len(reading.unembedding[0]) == 5


def test_norms_are_quantiles_of_lengths():
    embeds = torch.arange(1.0, 102).reshape(101, 1, 1)
    found = norm_quantiles(embeds, torch.tensor([[3.0, 4.0], [0.0, 1.0]]), 2 * embeds[:, 0])
    assert found["image_vectors"] == pytest.approx([6, 26, 51, 76, 96])
    assert found["text_embeddings"] == pytest.approx([12, 52, 102, 152, 192])
    assert (found["boi"], found["eoi"]) == (5, 1) and found["quantiles"] == [0.05, 0.25, 0.5, 0.75, 0.95]
