import pytest
import torch
from transformers import AutoTokenizer, CLIPModel

from visllama.data.scenes.clip import near_miss_accuracy, normalise, probe, train_clip
from visllama.model.locate import locate


@pytest.fixture(scope="module")
def clip():
    return CLIPModel.from_pretrained(locate("visllama:clip"), dtype=torch.float32).eval()


@pytest.mark.parametrize(("fact", "least"), [("color", 0.98), ("shape", 0.95), ("size", 0.95), ("cell", 0.85)])
def test_the_shipped_clip_sees_single_things(clip, fact, least):
    assert probe(clip, fact, 2000) >= least


def test_the_shipped_clip_tells_near_misses_of_two_things(clip):
    """Chance is 1 in up to 9."""
    tokenizer = AutoTokenizer.from_pretrained(locate("visllama:llama"))
    assert near_miss_accuracy(clip, tokenizer, "two", 100) >= 0.5


def test_a_clip_that_learned_nothing_tells_none(clip):
    tokenizer = AutoTokenizer.from_pretrained(locate("visllama:llama"))
    assert near_miss_accuracy(CLIPModel(clip.config).eval(), tokenizer, "two", 100) < 0.4


def test_normalise_uses_the_shipped_mean_and_std():
    pixels = torch.tensor([0.85, 0.80, 0.80]).view(1, 3, 1, 1) * 255
    assert normalise(pixels).abs().max() < 1e-6


@pytest.mark.parametrize("batch_size", [3, 16])
def test_a_batch_that_its_groups_cannot_fill_is_refused(batch_size):
    """It would wait for a batch for ever."""
    sizes = {"width": 32, "layers": 1, "text_layers": 1, "num_steps": 1, "num_groups": 3, "lr": 0.1}
    with pytest.raises(ValueError, match=f"batch_size={batch_size}: must hold 1 to 3 groups of 4 pictures"):
        train_clip(AutoTokenizer.from_pretrained(locate("visllama:llama")), print, batch_size=batch_size, **sizes)
