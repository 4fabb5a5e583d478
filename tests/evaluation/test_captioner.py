import torch

from tests.tiny import maker_of
from visllama.evaluation.captioner import Captioner


def test_batch_size_changes_no_caption(make_model, records):
    model = make_model(dtype=torch.float32).eval()
    captions = [Captioner(maker_of(model), {"max_new_tokens": 8}, size)(model, records) for size in (1, 4, 6)]
    assert captions[0] == captions[1] == captions[2]
    assert len(captions[0]) == len(records) and all("\n" not in text and "</s>" not in text for text in captions[0])


def test_batches_come_one_by_one(make_model, records):
    model = make_model(dtype=torch.float32).eval()
    sizes = [len(batch) for batch in Captioner(maker_of(model), {"max_new_tokens": 2}, 4).batches(model, records)]
    assert sizes == [4, 2]


def test_decoding_is_passed_on(make_model, records):
    model = make_model(dtype=torch.float32).eval()
    long, short = (Captioner(maker_of(model), {"max_new_tokens": n}, 6)(model, records) for n in (12, 2))
    assert all(a.startswith(b) for a, b in zip(long, short, strict=True)) and sum(map(len, long)) > sum(map(len, short))
