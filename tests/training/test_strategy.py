import os
import sys

from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.strategies.launchers import subprocess_script

from visllama.training.strategy import build_strategy, child_command, forget_ranks, use_child_command


def test_auto_is_lightnings_own_choice_and_ddp_is_built():
    assert build_strategy("auto") == "auto"
    strategy = build_strategy({"_target_": "lightning.pytorch.strategies.DDPStrategy", "broadcast_buffers": False})
    assert isinstance(strategy, DDPStrategy)


def test_a_rank_is_started_with_this_jobs_verb_and_overrides(compose_config, tmp_path):
    """Never with `--multirun`: each child would go through the whole sweep by itself."""
    compose_config("train", "optim.lr=0.5", "name='a b'")
    command, folder = child_command(1)
    assert command[:4] == [sys.executable, "-m", "visllama", "train"]
    assert "optim.lr=0.5" in command and "name='a b'" in command and "-m" not in command[2:]
    assert f"hydra.run.dir={tmp_path}" in command and "hydra.output_subdir=null" in command
    assert folder == os.getcwd()


def test_lightning_uses_it():
    use_child_command()
    assert subprocess_script._hydra_subprocess_cmd is child_command


def test_forgetting_ranks_without_any_is_harmless(compose_config):
    compose_config("train")
    forget_ranks()
