"""Vectors are read by the language model's own embeddings and by its own last layers."""

from __future__ import annotations

import pytest
import torch

from tests.support.families import LANGUAGE_MODELS, save_language_model
from tests.support.looked_at import loud_model
from visllama.inspect.connector.lens import NUM_TOKENS, Lens, TopTokens, final_norm
from visllama.model.language_model import PretrainedLanguageModel


@pytest.fixture(scope="module")
def model():
    return loud_model()


def test_a_vector_that_is_an_embedding_has_a_cosine_of_one_with_it(model):
    lens = Lens(model)
    ids = torch.tensor([7, 100, 479])
    top = lens.nearest(3 * lens.embeddings[ids])
    assert top.ids[:, 0].tolist() == ids.tolist()
    assert torch.allclose(top.scores[:, 0], torch.ones(3), atol=1e-6)  # fp32: a sum of 128 products
    assert (top.scores.diff(dim=1) <= 0).all() and top.ids.shape == (3, NUM_TOKENS)


def test_cosines_are_those_of_torch_for_more_vectors_than_are_read_at_once(model):
    lens = Lens(model)
    vectors = torch.randn(300, 128)
    top = lens.nearest(vectors)
    for row in (0, 255, 256, 299):
        cosines = torch.cosine_similarity(vectors[row], lens.embeddings, dim=-1)
        assert torch.allclose(top.scores[row], cosines.topk(NUM_TOKENS).values, atol=1e-6)
        assert torch.equal(top.ids[row], cosines.topk(NUM_TOKENS).indices)


@pytest.mark.parametrize("family", LANGUAGE_MODELS)
def test_the_unembedding_is_what_the_model_itself_does_last(family, tmp_path):
    """What goes into the last norm, read again, is what the model predicts; so the norm is the right one."""
    source = PretrainedLanguageModel(str(save_language_model(family, tmp_path)))
    language_model = source.load(torch.float32).eval()

    class Model:
        tokenizer = source.tokenizer

    Model.language_model = language_model
    seen = []
    handle = final_norm(language_model).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        logits = language_model(torch.arange(20)[None]).logits[0]
    handle.remove()
    lens = Lens(Model)
    expected = logits[:, : len(lens.embeddings)].softmax(-1).topk(NUM_TOKENS)
    top = lens.unembed(seen[0][0])
    assert torch.equal(top.ids, expected.indices) and torch.allclose(top.scores, expected.values, atol=1e-6)


def test_without_a_known_norm_nothing_is_unembedded(model, monkeypatch):
    monkeypatch.setattr("visllama.inspect.connector.lens.FINAL_NORMS", ("nowhere",))
    lens = Lens(model)
    assert not lens.can_unembed and lens.unembed(torch.ones(1, 128)) is None


def test_tokens_have_the_names_of_the_tokenizer(model):
    lens = Lens(model)
    top = TopTokens(torch.tensor([[5, 300]]), torch.tensor([[0.123456, 0.1]]))
    assert lens.named(top, 0) == [
        (name, score) for name, score in zip(lens.names([5, 300]), [0.1235, 0.1], strict=True)
    ]
    assert lens.names([300]) == model.tokenizer.convert_ids_to_tokens([300])
