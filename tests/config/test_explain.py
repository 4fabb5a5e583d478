"""What a user of Hydra or Lightning types first: it works, or the message says what to type."""

from __future__ import annotations

import shlex
import subprocess
import sys

import pytest
import torch

from tests.support.refusals import refusal
from visllama.config.explain import explain_options

WORKS = None

TYPED = [
    # the words, what must stand in the message
    ("trainer=ddp", "trainer/strategy=ddp"),
    ("trainer/strategy=ddp", WORKS),
    ("trainer=cpu trainer.devices=2", WORKS),
    ("trainer/devices=2", "Did you mean trainer.devices?"),
    ("trainer.gpus=2", "Did you mean trainer.devices?"),
    ("gpus=2", "Did you mean trainer.devices?"),
    ("devices=2", "Did you mean trainer.devices?"),
    ("trainer.strategy=ddp", "trainer/strategy=ddp"),
    ("strategy=ddp", "Did you mean trainer/strategy=ddp?"),
    ("trainer.max_epochs=1", "Did you mean stage.epochs?"),
    ("epochs=1", "Did you mean stage.epochs?"),
    ("max_steps=10", "Did you mean trainer.max_steps?"),
    ("trainer.max_steps=10", WORKS),
    ("trainer.precision=16", "did you mean 16-true?"),
    ("trainer.precision=bf16", "did you mean bf16-mixed or bf16-true?"),
    ("trainer.precision=bf16-mixed", WORKS),
    ("precision=bf16", "Did you mean trainer.precision?"),
    ("trainer.accumulate_grad_batches=4", "Did you mean micro_batch_size?"),
    ("trainer.gradient_clip_val=1.0", "Did you mean optim.clip_norm?"),
    ("lr=1e-3", "Did you mean optim.lr?"),
    ("learning_rate=1e-3", "Did you mean optim.lr?"),
    ("optim/lr=1e-3", "Did you mean optim.lr?"),
    ("optim.lr=1e-3", WORKS),
    ("+optim.lr=1", "Either remove + prefix: 'optim.lr=1'"),
    ("++optim.lr=1", WORKS),
    ("~optim.clip_norm", "no value for optim.clip_norm"),
    ("optim.clip_norm=null", WORKS),
    ("optim.lr=1e-3,1e-4", "-m optim.lr=1e-3,1e-4"),
    ("optim=sgd", "optim=adamw"),
    ("optimizer=adamw", "Did you mean optim=adamw"),
    ("batch_size=32", "Did you mean stage.global_batch_size"),
    ("stage.batch_size=4", "Did you mean stage.global_batch_size"),
    ("data.batch_size=4", "Did you mean stage.global_batch_size"),
    ("num_workers=2", "Did you mean data.num_workers?"),
    ("model=mlp", "did you mean model/connector=mlp?"),
    ("connector=resampler", "Did you mean model/connector=resampler?"),
    ("connector=mlp", "Did you mean model/connector=mlp?"),
    ("model.connector=mlp", "model/connector=mlp"),
    ("model/connector=resampler", WORKS),
    ("model/connector=mpl", "did you mean model/connector=mlp"),
    ("stage=pretrian", "did you mean stage=pretrain?"),
    ("experiment=smoke", WORKS),
    ("data=coco", "data.sources.coco: path=data/coco/train: no tar"),
    ("dataset=coco", "Did you mean data=coco?"),
    ("evaluation=none", WORKS),
    ("evaluation=scenes_caption", WORKS),
    ("evaluation=[none]", WORKS),
    ("logger=wandb", WORKS),
    ("wandb=true", "Did you mean logger=wandb?"),
    ("logger=tensorboard", "logger=wandb"),
    ("logger=false", "logger=wandb"),
    ("resume=x", "resume"),
    ("ckpt_path=x", "ckpt_path"),
    ("seed=abc", "seed=abc: Value 'abc' of type 'str' could not be converted to Integer"),
    ("'name=a b'", WORKS),
    ("name=a=b", "\"name='a=b'\""),
    ("\"name='a=b'\"", WORKS),
    ("hydra.run.dir=a=b", "\"hydra.run.dir='a=b'\""),
    ("train", "train: an override is key=value"),
    ("optim.lr = 1e-3", "optim.lr: an override is key=value"),
    ("stage.trainable=connector", "stage.trainable=[connector]"),
]  # fmt: skip


@pytest.mark.parametrize(("typed", "told"), TYPED)
def test_it_works_or_the_message_says_what_to_type(compose_config, typed, told):
    message = refusal(compose_config, "train", *shlex.split(typed))
    assert message is None if told is WORKS else told in message, message


def visllama(folder, *words: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "visllama", "train", *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=300)


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("--lr 1e-3", "Did you mean optim.lr=1e-3?"),
        ("--lr=1e-3", "Did you mean optim.lr=1e-3?"),
        ("--learning-rate 1e-3 -m", "Did you mean optim.lr=1e-3?"),
        ("--seed=1", "Did you mean seed=1?"),
        ("--model.connector mlp", "Did you mean model.connector=mlp?"),
        ("--max_epochs 1", "Did you mean stage.epochs=1?"),
        ("--connector mlp", "Did you mean model/connector=mlp?"),
        ("--gpus", "Did you mean trainer.devices=VALUE?"),
        ("--frobnicate", "--help shows all"),
        ("optim.lr=1e-3 --multirun --cfg job --config-dir x -cd=y", WORKS),
    ],
)
def test_keys_typed_as_options_are_named_without_dashes(typed, told):
    message = explain_options(typed.split(), "train")
    assert message is None if told is WORKS else told in message, message


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("--help", "model/connector: mlp"),
        ("-h", "visllama train"),
        ("--cfg job", "global_batch_size: 64"),
        ("--cfg all", "output_subdir"),
        ("--info defaults", "stage/pretrain"),
        ("--version", "Hydra"),
        ("name=lr --cfg job optim.lr=1e-4 --resolve", "name: lr"),
    ],
)
def test_options_of_hydra_work(tmp_path, typed, told):
    ended = visllama(tmp_path, *typed.split())
    assert ended.returncode == 0 and told in ended.stdout, ended.stderr[-1000:]


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("--lr 1e-3", "Did you mean optim.lr=1e-3?"),
        ("lr=1e-3", "Did you mean optim.lr?"),
        ("trainer=ddp", "did you mean trainer/strategy=ddp?"),
        ("optim.lr=1e-3,1e-4", "-m optim.lr=1e-3,1e-4"),
        ("--config-name x", "--config-name x"),
        ("--config-dir nowhere", "nowhere"),
        ("-m seed=1,2,3 --cfg job", "Only one of --run, --multirun, --cfg"),
        ("logger=null", "logger=wandb"),
        ("train", "an override is key=value"),
    ],
)
def test_the_program_says_it_and_leaves_nothing_behind(tmp_path, typed, told):
    ended = visllama(tmp_path, *typed.split())
    assert ended.returncode == 2 and told in ended.stderr, ended.stderr[-1000:]
    assert "Traceback" not in ended.stderr and "usage" not in ended.stderr and list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_an_accelerator_that_is_not_here_is_named(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    ended = visllama(tmp_path, "trainer.accelerator=gpu")
    assert ended.returncode == 2 and "trainer.accelerator=gpu" in ended.stderr and "CUDA" in ended.stderr
    assert "Traceback" not in ended.stderr and list(tmp_path.rglob("weights")) == []


@pytest.mark.slow
def test_a_sweep_whose_name_is_not_given_finds_its_folder(tmp_path):
    """Its folder is named after what was chosen, which Hydra does not know as early as that by itself."""
    quick = ["trainer=cpu", "trainer.max_steps=1", "judge=false", "stage.global_batch_size=2", "data.num_val_records=2"]
    ended = visllama(tmp_path, "-m", "seed=1,2", *quick)
    assert ended.returncode == 0, ended.stderr[-1000:]
    assert len(list((tmp_path / "outputs" / "pretrain-scenes-mlp").glob("*/*/weights"))) == 2
