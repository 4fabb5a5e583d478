import pytest
import torch

from visllama.data.collate import Collator
from visllama.data.samples import Sample
from visllama.text.tokens import IGNORE_INDEX, image_span

COLLATOR = Collator(pad_token_id=0, num_image_tokens=2, size_px=4, micro_batch_size=3)


def sample(key: str, num_text: int, num_images: int = 1) -> Sample:
    span = image_span(2) * num_images
    return Sample(
        key,
        [*span, *range(5, 5 + num_text)],
        [IGNORE_INDEX] * len(span) + [7] * num_text,
        [torch.zeros(3, 4, 4, dtype=torch.uint8)] * num_images,
    )


def test_training_pads_on_the_right_and_learns_no_padding():
    batch = COLLATOR.training_batch([sample("a", 1), sample("b", 3)])
    assert batch["input_ids"].tolist() == [[-2, -1, -1, -3, 5, 0, 0], [-2, -1, -1, -3, 5, 6, 7]]
    assert batch["labels"][0].tolist() == [IGNORE_INDEX] * 4 + [7, IGNORE_INDEX, IGNORE_INDEX]
    assert "attention_mask" not in batch


def test_generation_pads_on_the_left():
    batch = COLLATOR.generation_batch([sample("a", 0), sample("b", 2)])
    assert batch["input_ids"].tolist() == [[0, 0, -2, -1, -1, -3], [-2, -1, -1, -3, 5, 6]]
    assert batch["attention_mask"].tolist() == [[0, 0, 1, 1, 1, 1], [1] * 6]


def test_a_step_has_micro_batches_of_like_length_and_all_its_samples():
    samples = [sample(str(n), n) for n in (5, 1, 4, 2, 3, 6, 7)]
    step = COLLATOR.step(samples)
    assert [len(batch["input_ids"]) for batch in step["micro_batches"]] == [3, 3, 1]
    lengths = [(batch["labels"] != IGNORE_INDEX).sum(1).tolist() for batch in step["micro_batches"]]
    assert lengths == [[1, 2, 3], [4, 5, 6], [7]]
    assert step["num_targets"] == 28 and step["num_samples"] == 7 and step["keys"] == [s.key for s in samples]


def test_a_rank_without_samples_has_a_step_without_micro_batches():
    step = COLLATOR.step([])
    assert step["micro_batches"] == [] and step["num_targets"] == 0


def test_a_batch_without_images_gets_one_dummy():
    batch = COLLATOR.training_batch([sample("a", 2, num_images=0)])
    assert batch["pixel_values"].shape == (1, 3, 4, 4)


def test_placeholders_that_do_not_fit_the_images_are_refused():
    bad = Sample("a", [*image_span(3), 5], [IGNORE_INDEX] * 5 + [5], [torch.zeros(3, 4, 4, dtype=torch.uint8)])
    with pytest.raises(ValueError, match="3 placeholders for 1 images of 2 tokens each"):
        COLLATOR.training_batch([bad])
