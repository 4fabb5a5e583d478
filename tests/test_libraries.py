"""The register of private doors: what we reach into of other libraries that they promise nobody.

Each entry names the library, where we use it and why, and asserts that it is there and does what we need. When a new
release moves one, this file says which; `pyproject.toml` bounds these libraries by the first release that was not tried.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

import lightning.pytorch as pl
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import ConfigCompositionException, MissingConfigException
from torch import nn
from torch.utils.data import DataLoader, Dataset

from tests.support.trackio_files import read_trackio_run
from visllama.config.schema import conf_dir, register


def test_hydra_its_parser_of_options():
    """`config/explain.py` tells a key that was typed as an option from Hydra's own options. Hydra shows its parser to
    nobody else."""
    from hydra._internal.utils import get_args_parser

    parser = get_args_parser()
    assert isinstance(parser, argparse.ArgumentParser)
    known, unknown = parser.parse_known_args(["--config-dir", "x", "a=1", "--lr", "1"])
    assert known.config_dir == "x" and known.overrides == ["a=1"] and unknown == ["--lr", "1"]


@pytest.mark.parametrize(
    ("typed", "kind", "says"),
    [
        ("optim.rl=1", ConfigCompositionException, "Could not override 'optim.rl'"),
        ("stage=pretrian", MissingConfigException, "Could not find 'stage/pretrian'"),
    ],
)
def test_hydra_the_words_of_its_errors(typed, kind, says):
    """`config/explain.py` reads the key out of them: Hydra's errors have no field for it."""
    register()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"), pytest.raises(kind) as caught:
        compose("train", [typed])
    assert says in str(caught.value)


def test_hydra_the_table_of_its_plugins():
    """`sweep/slurm.py` puts its launcher there: Hydra looks for launchers in packages named `hydra_plugins.` alone."""
    from hydra.core.plugins import Plugins

    table = Plugins.instance().class_name_to_class
    assert isinstance(table, dict) and "hydra._internal.core_plugins.basic_launcher.BasicLauncher" in table


CALLBACKS = """
import sys
import hydra
from hydra.experimental.callback import Callback

class Before(Callback):
    def on_run_start(self, config, config_name, **_):
        print("before", flush=True)
        if config.fails == 1:
            raise ValueError("a warning is made of it")
        if config.fails == 2:
            sys.exit(3)

@hydra.main(version_base="1.3", config_path=None, config_name=None)
def job(cfg):
    print("job", flush=True)

if __name__ == "__main__":
    job()
"""


def test_hydra_what_its_callbacks_may_do(tmp_path):
    """`cli.py` checks in one before the run's folder is made. Hydra makes a warning of an exception there, and goes on;
    it ends where the callback leaves the program."""
    (tmp_path / "program.py").write_text(CALLBACKS)
    common = ["+hydra.callbacks.before._target_=__main__.Before"]
    for fails, code, said in ((0, 0, "before\njob\n"), (1, 0, "before\njob\n"), (2, 3, "before\n")):
        command = [sys.executable, "program.py", *common, f"+fails={fails}"]
        ended = subprocess.run(
            [*command, f"hydra.run.dir=made{fails}"], capture_output=True, text=True, cwd=tmp_path, timeout=100
        )
        assert (ended.returncode, ended.stdout) == (code, said), ended.stderr
        assert (tmp_path / f"made{fails}").exists() == (fails != 2), "it comes before the folder"


def test_lightning_its_handlers_of_signals():
    """`training/run.py` turns them off: Lightning answers SIGTERM by a collective inside its handler, where ranks hang,
    and asks the device at each step whether there was one. `machine/preemption.py` does neither."""
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    assert callable(trainer._signal_connector.register_signal_handlers)
    assert callable(trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor)


def test_lightning_how_its_launcher_starts_and_watches_ranks():
    """`parallel/launch.py` puts its own functions there: Lightning would give each rank the command line of a sweep, and
    does not end the others when one fails."""
    from inspect import signature

    from lightning.fabric.strategies.launchers import subprocess_script

    assert list(signature(subprocess_script._hydra_subprocess_cmd).parameters) == ["local_rank"]
    assert list(signature(subprocess_script._launch_process_observer).parameters) == ["child_processes"]


class Ending(Dataset):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> int:
        import os
        import signal

        os.kill(os.getpid(), signal.SIGKILL)


def test_torch_the_words_of_a_loading_process_that_was_killed():
    """`data/loading.py` knows by them that it was one, of all errors that a handler of signals raises anywhere."""
    with pytest.raises(RuntimeError, match=r"^DataLoader worker \(pid"):
        list(DataLoader(Ending(), num_workers=1))


def test_torch_tensors_that_are_counted_and_take_no_memory():
    """`model/counted.py` runs a connector with them: unlike tensors on `meta` they have a device, by which autocast chooses."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        made = nn.Linear(10**6, 10**6)(torch.ones(2, 10**6))
    assert made.shape == (2, 10**6)


def test_transformers_which_attention_a_model_has():
    """`inference/attention.py` sets it back after a pass by another one: `set_attn_implementation` is public, and
    what reads it is not."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = dict.fromkeys(("vocab_size", "hidden_size", "intermediate_size"), 8)
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1))
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    assert (before, model.config._attn_implementation) == ("sdpa", "eager")


def test_transformers_what_families_call_their_last_norm():
    """`inspect/connector/lens.py` finds it by these names: `get_output_embeddings` is public, the norm before has no door."""
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM

    from visllama.inspect.connector.lens import final_norm

    sizes = {"vocab_size": 8, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    llama = LlamaForCausalLM(LlamaConfig(**sizes, intermediate_size=8, num_key_value_heads=1))
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=8, n_embd=8, n_layer=1, n_head=1))
    opt = OPTForCausalLM(OPTConfig(**sizes, ffn_dim=8, word_embed_proj_dim=8, max_position_embeddings=8))
    assert final_norm(llama) is llama.model.norm
    assert final_norm(gpt2) is gpt2.transformer.ln_f
    assert final_norm(opt) is opt.model.decoder.final_layer_norm


def test_gradio_where_its_uploads_lie(tmp_path, monkeypatch):
    """`release/demo/server.py` names the folder in the environment, as gradio's guide has it; it is read anew for each
    page, which no guide says."""
    utils = pytest.importorskip("gradio.utils")
    for name in ("a", "b"):
        monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / name))
        assert utils.get_upload_folder() == str(tmp_path / name)


def test_peft_the_words_of_a_target_that_is_not_there():
    """`model/lora.py` knows by them that the targets are wrong: PEFT raises a plain ValueError for this and for more."""
    from peft import LoraConfig, inject_adapter_in_model

    with pytest.raises(ValueError, match="arget module"):
        inject_adapter_in_model(LoraConfig(target_modules=["nowhere"]), nn.Sequential(nn.Linear(2, 2)))


def test_wandb_the_reader_of_its_files():
    """`tests/support/wandb_files.py` reads an offline run back: wandb has no public reader of its own files."""
    from wandb.proto.wandb_internal_pb2 import Record
    from wandb.sdk.internal.datastore import DataStore

    assert callable(DataStore().open_for_scan) and callable(DataStore().scan_data)
    assert {"run", "config", "summary", "history", "exit", "artifact"} <= set(Record.DESCRIPTOR.fields_by_name)


def test_optuna_what_its_storages_and_pruners_are_asked(tmp_path):
    """`tracking/study.py` and `sweep/trials.py` report to a trial by its number from another process. Optuna's guides
    have a `Trial` for it, which only the process that asked for the trial gets; the methods are those of its base classes."""
    optuna = pytest.importorskip("optuna")
    from optuna.storages import BaseStorage, JournalStorage
    from optuna.storages.journal import JournalFileBackend

    storage = JournalStorage(JournalFileBackend(str(tmp_path / "journal")))
    study = optuna.create_study(storage=storage, study_name="a")
    study.sampler = optuna.samplers.RandomSampler(seed=1)  # anew for each trial
    number = study.ask().number
    found = storage.get_trial_id_from_study_id_trial_number(storage.get_study_id_from_name("a"), number)
    storage.set_trial_intermediate_value(found, 3, 0.5)
    storage.set_trial_user_attr(found, "row", {"a": 1})
    trial = storage.get_trial(found)
    assert trial.intermediate_values == {3: 0.5} and trial.user_attrs == {"row": {"a": 1}}
    assert isinstance(storage, BaseStorage) and not optuna.pruners.MedianPruner().prune(study, trial)


def test_trackio_the_tables_of_its_database(tmp_path):
    """`tests/support/trackio_files.py` reads a run back: trackio has no public reader of what was logged."""
    pytest.importorskip("trackio")
    command = "import trackio; trackio.init('p', name='r', embed=False, auto_log_cpu=False, auto_log_gpu=False)"
    command += "; trackio.log({'x': 1.5}, step=3); trackio.finish()"
    environment = os.environ | {"TRACKIO_DIR": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    ended = subprocess.run(
        [sys.executable, "-c", command], env=environment, capture_output=True, text=True, timeout=100
    )
    assert ended.returncode == 0, ended.stderr
    assert read_trackio_run(tmp_path).rows == [(3, {"x": 1.5})]
