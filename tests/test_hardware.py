import pytest
import torch

from visllama.hardware import find_device, find_precision, frozen_dtype


def test_precision_that_is_named_stays():
    assert find_precision({"precision": "64-true", "accelerator": "cpu"}) == "64-true"


@pytest.mark.parametrize(("cuda", "expected"), [(True, "bf16-mixed"), (False, "32-true")])
def test_auto_is_bf16_where_there_is_cuda(monkeypatch, cuda, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert find_precision({"precision": "auto", "accelerator": "auto"}) == expected
    assert find_precision({"precision": "auto", "accelerator": "cpu"}) == "32-true"
    assert find_device("auto").type == ("cuda" if cuda else "cpu") and find_device("cpu").type == "cpu"


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [
        ("bf16-mixed", torch.bfloat16),
        ("32-true", torch.float32),
        ("64-true", torch.float64),
        ("16-mixed", torch.float16),
    ],
)
def test_frozen_weights_take_the_compute_dtype(precision, dtype):
    assert frozen_dtype(precision) == dtype
