import pytest

from visllama.machine.ranks import on_first_rank, run_id, run_key

VARIABLES = ("RANK", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_JOB_ID", "SLURM_JOB_NAME",
             "TORCHELASTIC_RUN_ID")  # fmt: skip


@pytest.fixture
def started(monkeypatch):
    def start(**variables: str) -> None:
        for name in VARIABLES:
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return start


def test_a_run_has_its_launchers_name_or_the_date(started):
    started(SLURM_JOB_ID="42", TORCHELASTIC_RUN_ID="none", WORLD_SIZE="2")
    assert run_id() == "42"
    started(TORCHELASTIC_RUN_ID="abc", WORLD_SIZE="2")
    assert run_id() == "abc"
    started()
    assert len(run_id()) == len("2026-01-31_12-00-00")


def test_ranks_of_several_nodes_without_a_common_name_are_refused(started):
    """By the clock each node would name a folder of its own."""
    started(TORCHELASTIC_RUN_ID="none", WORLD_SIZE="1")
    assert run_id()
    started(TORCHELASTIC_RUN_ID="none", WORLD_SIZE="16")
    with pytest.raises(ValueError, match="--rdzv-id=NAME"):
        run_id()


@pytest.mark.parametrize(
    ("variables", "first"),
    [
        ({}, True),
        ({"RANK": "0", "LOCAL_RANK": "0"}, True),
        ({"RANK": "8", "LOCAL_RANK": "0"}, False),
        ({"SLURM_NTASKS": "2", "SLURM_PROCID": "1"}, False),
        ({"SLURM_NTASKS": "2", "SLURM_PROCID": "0"}, True),
        ({"LOCAL_RANK": "1"}, False),
        ({"NODE_RANK": "1", "LOCAL_RANK": "0"}, False),
    ],
)
def test_one_rank_alone_is_given_what_writes(started, compose_config, tmp_path, variables, first):
    started(**variables)
    assert on_first_rank("here", "there") == ("here" if first else "there")
    compose_config("train")
    from hydra.core.hydra_config import HydraConfig

    hydra = HydraConfig.get()
    assert hydra.output_subdir == (".hydra" if first else None)
    log = str(tmp_path / "log.txt") if first else "/dev/null"
    assert hydra.job_logging.handlers.file.filename == log


def test_wandb_knows_a_resumed_run_again():
    assert run_key("outputs/a b/2026") == run_key("outputs/a b/2026") != run_key("elsewhere/a b/2026")
    assert run_key("outputs/a=b (c)/2026").startswith("a-b-c--2026-") and len(run_key("x" * 200)) < 128
