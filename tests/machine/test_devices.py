import pytest
import torch

from visllama.errors import ConfigError
from visllama.machine.devices import count_ranks, find_device, find_precision, frozen_dtype


def test_precision_that_is_named_stays():
    assert find_precision("64-true", "cpu") == "64-true"


@pytest.mark.parametrize(("cuda", "expected"), [(True, "bf16-mixed"), (False, "32-true")])
def test_auto_is_bf16_where_there_is_cuda(monkeypatch, cuda, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert find_precision("auto", "auto") == expected
    assert find_precision("auto", "cpu") == "32-true"
    assert find_device("auto").type == ("cuda" if cuda else "cpu") and find_device("cpu").type == "cpu"


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [
        ("bf16-mixed", torch.bfloat16),
        ("bf16-true", torch.bfloat16),
        ("32-true", torch.float32),
        ("64-true", torch.float64),
        ("16-true", torch.float16),
    ],
)
def test_frozen_weights_take_the_compute_dtype(precision, dtype):
    assert frozen_dtype(precision) == dtype


def trainer(**values):
    return {"accelerator": "cpu", "devices": "auto", "num_nodes": "auto", **values}


TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "4", "WORLD_SIZE": "8"}
SRUN = {"SLURM_NTASKS": "16", "SLURM_NNODES": "4", "SLURM_JOB_NAME": "train"}


@pytest.mark.parametrize(("started", "ranks"), [({}, (1, 1)), (TORCHRUN, (2, 4)), (SRUN, (4, 4))])
def test_ranks_are_those_that_were_started(monkeypatch, started, ranks):
    for name in (*TORCHRUN, *SRUN):
        monkeypatch.delenv(name, raising=False)
    for name, value in started.items():
        monkeypatch.setenv(name, value)
    assert count_ranks(**trainer()) == ranks == count_ranks(**trainer(num_nodes=ranks[0], devices=ranks[1]))
    if started:
        with pytest.raises(ConfigError, match=r"trainer\.devices=3 .* has started . x 4"):
            count_ranks(**trainer(devices=3))
    else:
        assert count_ranks(**trainer(devices=3, num_nodes=2)) == (2, 3) and count_ranks(**trainer(devices=[0, 2])) == (
            1,
            2,
        )


def test_an_interactive_allocation_has_started_nobody(monkeypatch):
    for name, value in (SRUN | {"SLURM_JOB_NAME": "bash"}).items():
        monkeypatch.setenv(name, value)
    assert count_ranks(**trainer()) == (1, 1)
