from collections import Counter
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback
from rich.console import Console

from tests.support import tiny
from tests.support.families import save_encoder
from tests.support.optimizer_config import OPTIM
from tests.support.scenes_data import data_of
from tests.support.tiny import maker_of, tiny_parts
from visllama.checkpoint.folder import name_of
from visllama.config.plain import to_yaml
from visllama.data.scenes.source import ScenesSource
from visllama.errors import ConfigError
from visllama.evaluation.captioner import Captioner
from visllama.model.weights import build_model
from visllama.training.callbacks.build import build_callbacks
from visllama.training.callbacks.last_validation import LastValidation
from visllama.training.callbacks.progress import ProgressBar, Throughput
from visllama.training.callbacks.proofs import FrozenWeights, SameEverywhere
from visllama.training.callbacks.sample_texts import SampleTexts
from visllama.training.callbacks.saving import Saving
from visllama.training.callbacks.tables import data_table, parts_table
from visllama.training.module import VisLlamaModule


def shown(table, width: int = 80) -> str:
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table)
    return console.export_text()


def test_start_up_table_fits_80_columns_and_tells_each_part(make_model):
    model = make_model(dtype=torch.float32)
    text = shown(parts_table(model, OPTIM))
    for word in (
        "vision_encoder",
        "connector",
        "markers",
        "language_model",
        "trained",
        "frozen",
        "float32",
        "LlamaForCausalLM",
    ):
        assert word in text, word
    assert f"{sum(p.numel() for p in model.language_model.parameters()):,}" in text
    assert max(map(len, text.splitlines())) <= 80


def test_start_up_table_says_at_what_rate_each_part_learns(make_model):
    """Some connectors learn at a quarter of `optim.lr`: who compares rates has to see it."""
    model = make_model()
    assert "learning rate: connector 0.1, markers 0.1" in shown(parts_table(model, OPTIM))
    model.connector.lr_scale = 0.25
    assert "learning rate: connector 0.025 (0.25 of optim.lr), markers 0.1" in shown(parts_table(model, OPTIM))
    given = OPTIM | {"lr_by_part": {"connector": 3e-4, "markers": None}}
    assert "learning rate: connector 0.0003, markers 0.1" in shown(parts_table(model, given)), "taken as it is"


class Rates(Callback):
    """What each step was taken with, beside what was logged at it."""

    def __init__(self):
        self.taken, self.logged = [], []

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.taken.append(optimizer.param_groups[0]["lr"])

    def on_train_batch_end(self, trainer, module, *_):
        self.logged.append(float(trainer.callback_metrics["lr/connector"]))


def test_the_logged_rate_is_that_of_the_step(make_model, tmp_path):
    """On resuming too: steps 4 to 6 of six."""

    def fit(max_steps: int, checkpoint=None) -> tuple[Rates, pl.Trainer]:
        rates, model = Rates(), make_model(dtype=torch.float32)
        trainer = pl.Trainer(
            accelerator="cpu", max_epochs=1, max_steps=max_steps, logger=False, enable_checkpointing=False, log_every_n_steps=1,
            enable_progress_bar=False, enable_model_summary=False, callbacks=[Throughput(), rates], limit_val_batches=0,
            use_distributed_sampler=False,
        )  # fmt: skip
        trainer.fit(VisLlamaModule(model, OPTIM, 6), data_of(model, num_steps=6), ckpt_path=checkpoint)
        return rates, trainer

    rising = [0.1 * step / 10 for step in range(1, 7)]
    first, trainer = fit(3)
    trainer.save_checkpoint(tmp_path / "checkpoint")
    second, _ = fit(6, tmp_path / "checkpoint")
    # Lightning logs in float32
    for rates, expected in ((first, rising[:3]), (second, rising[3:])):
        assert rates.taken == pytest.approx(expected) and rates.logged == pytest.approx(expected, rel=1e-6)


def test_llava_is_named_where_it_can_hold_the_model(make_model, tmp_path):
    """With CLIP it can; no other encoder was shown to fit."""
    model = make_model("patch_mlp", dtype=torch.float32)
    assert "exports to: LlavaForConditionalGeneration" in shown(parts_table(model, OPTIM))
    parts = tiny_parts("patch_mlp") | {
        "vision_encoder": {
            "kind": "SiglipVisionEncoder",
            "arguments": {"path": str(save_encoder("siglip", tmp_path / "siglip"))},
        }
    }
    other = build_model(parts, ("connector", "markers"))
    assert "exports to: visllama weights alone" in shown(parts_table(other, OPTIM))


def test_data_table(make_model):
    text = shown(data_table(data_of(make_model()), micro_batch_size=5, num_ranks=2, max_steps=8))
    row = next(line for line in text.splitlines() if "scenes" in line)
    assert [cell.strip() for cell in row.strip("│").split("│")] == ["scenes", "40", "40", "100.0%", "96", "2.40"]
    told = " ".join(text.split())
    assert "8 steps of 12 samples, 2 ranks, micro-batches of up to 5; 5 validation records" in told
    assert max(map(len, text.splitlines())) <= 80


def test_the_passes_of_the_table_are_how_often_each_question_comes(make_model):
    source = ScenesSource("train", 15, holds="questions")
    num_items = sum(source.item_counts)
    assert num_items > 2 * 15 and len(set(source.item_counts)) > 1
    data = tiny.data_of(make_model(), {"vqa": source}, ScenesSource("val", 1, 1), batch=1, num_steps=2 * num_items)
    text = shown(data_table(data, micro_batch_size=1, num_ranks=1, max_steps=2 * num_items))
    row = next(line for line in text.splitlines() if "vqa" in line)
    cells = [cell.strip() for cell in row.strip("│").split("│")]
    assert cells == ["vqa", "15", str(num_items), "100.0%", str(2 * num_items), "2.00"]
    keys = Counter(key for step in data.train_dataloader() for key in step["keys"])
    assert len(keys) == num_items and set(keys.values()) == {2}


def test_a_changed_bit_in_a_frozen_part_stops_the_run(make_model):
    module = SimpleNamespace(model=make_model(dtype=torch.float32))
    watch = FrozenWeights()
    watch.on_fit_start(None, module)
    watch.on_fit_end(None, module)
    with torch.no_grad():
        module.model.language_model.get_input_embeddings().weight[5, 5] += 1e-3
    with pytest.raises(RuntimeError, match="frozen weights changed in training: language_model"):
        watch.on_fit_end(None, module)


def test_sample_captions_are_shown(make_model, capsys):
    model = make_model(dtype=torch.float32).eval()
    trainer = SimpleNamespace(datamodule=data_of(model), is_global_zero=True, global_step=7)
    SampleTexts({"scenes": Captioner(maker_of(model), {"max_new_tokens": 5}, 2)}, 2).on_validation_epoch_end(
        trainer, SimpleNamespace(model=model)
    )
    said = capsys.readouterr().out
    assert "step 7" in said and "val-000001:" in said


def test_checkpoints_have_names_that_hydra_can_parse(tmp_path, configure):
    last = build_callbacks(configure("train"), tmp_path, None)[-1]
    assert isinstance(last, Saving) and name_of(1200) == "step_00001200"


@pytest.mark.parametrize("other", ["same", "another"])
def test_ranks_of_different_configs_are_refused(configure, monkeypatch, other):
    ours = to_yaml(configure("train", "optim.lr=0.5"))
    theirs = ours.replace("lr: 0.5", "lr: 0.25") if other == "another" else ours
    monkeypatch.setattr(
        dist, "all_gather_object", lambda found, own, group: found.__setitem__(slice(None), [own, theirs])
    )
    trainer = SimpleNamespace(world_size=2, strategy=SimpleNamespace(control=None))
    if other == "same":
        SameEverywhere(ours).setup(trainer, None, "fit")
        return
    with pytest.raises(ConfigError, match=r"rank 1 was given another config than rank 0: .*lr: 0\.25; .*lr: 0\.5"):
        SameEverywhere(ours).setup(trainer, None, "fit")


class Steps(Callback):
    """Note at which steps there was a validation."""

    def __init__(self) -> None:
        self.validated = []

    def on_validation_end(self, trainer: pl.Trainer, *_) -> None:
        self.validated.append(trainer.global_step)


@pytest.mark.parametrize(
    ("num_steps", "interval", "steps"), [(5, 2, [2, 4, 5]), (4, 2, [2, 4]), (1, 1, [1]), (3, None, [])]
)
def test_a_run_ends_with_one_validation(make_model, num_steps, interval, steps):
    model, noted, last = make_model(), Steps(), LastValidation()
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=1, max_steps=num_steps, val_check_interval=interval, limit_val_batches=1.0 if interval else 0,
        num_sanity_val_steps=0, logger=False, enable_checkpointing=False, enable_model_summary=False, enable_progress_bar=False,
        callbacks=[last, noted], precision="64-true",
    )  # fmt: skip
    trainer.fit(VisLlamaModule(model, OPTIM, num_steps), data_of(model, num_steps=num_steps))
    assert noted.validated == steps and trainer.global_step == num_steps
    assert not last.is_missing(trainer)


def test_a_run_that_was_stopped_before_its_last_validation_knows_it():
    last = LastValidation()
    last.load_state_dict({"validated_step": 44})
    trainer = SimpleNamespace(global_step=53, limit_val_batches=1.0)
    assert last.is_missing(trainer)
    trainer.limit_val_batches = 0
    assert not last.is_missing(trainer), "it has none"


def test_the_bar_of_a_run_that_goes_on_has_its_total():
    """Lightning sets it where an epoch begins, and a run is one epoch, in the middle of which it goes on."""
    bar = ProgressBar()
    trainer = SimpleNamespace(
        global_step=7,
        num_training_batches=20,
        max_epochs=1,
        is_global_zero=True,
        fit_loop=SimpleNamespace(max_epochs=1),
    )
    bar._trainer = trainer
    bar.on_train_start(trainer, None)
    assert (bar.train_progress_bar.total, bar.train_progress_bar.initial) == (20, 7)
    bar.train_progress_bar.close()
