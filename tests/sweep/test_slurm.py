from types import SimpleNamespace

import pytest
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from omegaconf import OmegaConf
from submitit.core.utils import UncompletedJobError

from tests.support.slurm_cluster import Slurm
from visllama.errors import ConfigError
from visllama.sweep import slurm as queue


@pytest.fixture
def cluster(tmp_path):
    with Slurm(tmp_path / "slurm") as cluster:
        yield cluster


@pytest.mark.parametrize("numbers", [("auto", 8), (2, "auto"), ("auto", "auto"), (1, [0, 1]), (1, -1)])
def test_the_queue_is_asked_for_numbers(cluster, monkeypatch, numbers):
    monkeypatch.setenv("PATH", cluster.environment["PATH"])
    with pytest.raises(ConfigError, match=r"give trainer\.num_nodes=NODES trainer\.devices=GPUS_A_NODE"):
        queue.use_launcher("slurm", {"num_nodes": numbers[0], "devices": numbers[1]})


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        (["trainer=mine", "optim.lr=1e-3,-1"], "optim.lr=-1: must be more than 0"),
        (["trainer=mine", "experiment=one,two"], "trainer.devices=2: of job 1, but 1 x 1 ranks are asked for"),
        (["optim.lr=1e-3,1e-2"], "found auto and auto"),
    ],
)
def test_what_no_job_could_do_is_not_queued(cluster, tmp_path, typed, says):
    for path, text in (("trainer/mine", "defaults: [cpu, _self_]\ndevices: 1\nnum_nodes: 1"),
                       ("experiment/one", "# @package _global_\nseed: 1"),
                       ("experiment/two", "# @package _global_\ntrainer: {devices: 2}")):  # fmt: skip
        (tmp_path / "conf" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "conf" / f"{path}.yaml").write_text(text)
    words = ["python", "-m", "visllama", "train", "--config-dir", "conf", "-m", "launch=slurm", *typed]
    ended = cluster.call(*words, cwd=tmp_path)
    assert ended.returncode == 2 and says in ended.stderr
    assert cluster.calls("sbatch") == []


def test_hydra_builds_the_launcher_that_the_config_names(cluster, compose_config, monkeypatch, tmp_path):
    """Account and partition of `local/slurm.yaml` reach sbatch, and what is null is not asked for."""
    monkeypatch.setenv("PATH", cluster.environment["PATH"])
    (tmp_path / "conf" / "local").mkdir(parents=True)
    (tmp_path / "conf" / "local" / "slurm.yaml").write_text("account: ab123\npartition: gpu\n")
    searched = f"hydra.searchpath=[{tmp_path / 'conf'}]"
    cfg = compose_config("train", searched, "launch=slurm", "trainer.num_nodes=2", "trainer.devices=4", "name=mine")
    queue.use_launcher("slurm", cfg.trainer)

    config = OmegaConf.merge({"hydra": HydraConfig.instance().cfg.hydra}, cfg)
    launcher = Plugins.instance().instantiate_launcher(hydra_context=None, task_function=None, config=config)
    params = launcher.params

    assert type(launcher) is queue.SweepLauncher
    assert (params["account"], params["partition"], params["qos"]) == ("ab123", "gpu", None)
    assert (params["name"], params["nodes"], params["tasks_per_node"]) == ("mine", 2, 4)
    assert params["cpus_per_task"] == cfg.data.num_workers + cfg.trainer.threads


def test_a_job_that_is_started_again_goes_on_in_its_folder(compose_config, tmp_path):
    cfg = compose_config("train")
    assert queue.going_on(lambda cfg: cfg.resume)(cfg) == str(tmp_path)
    assert queue.going_on(lambda cfg: "judged")(OmegaConf.create({"weights": "w"})) == "judged", (
        "evaluate has no resume"
    )


def test_a_lost_job_fails_alone(compose_config):
    cfg = compose_config("train", "optim.lr=0.5")
    with_hydra = OmegaConf.merge({"hydra": HydraConfig.instance().cfg.hydra}, cfg)

    def results():
        raise UncompletedJobError("Job 7 has not produced any output\nslurmstepd: Exceeded job memory limit")

    returned = queue._job_return(SimpleNamespace(results=results, job_id="7", state="OUT_OF_MEMORY"), with_hydra)
    assert "OUT_OF_MEMORY, without a result: slurmstepd: Exceeded" in str(returned.return_value)
    assert returned.cfg.optim.lr == 0.5 and list(returned.hydra_cfg.hydra.overrides.task) == ["optim.lr=0.5"]
