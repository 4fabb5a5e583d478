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
    ("optim=sgd", "optim._target_=torch.optim.SGD '~optim.betas' +optim.momentum=0.9"),
    ("optim._target_=torch.optim.SGD '~optim.betas' +optim.momentum=0.9", WORKS),
    ("optim=adam", "did you mean optim=adamw?"),
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
    ("data=coco", "no tar at data/coco/train: visllama prepare writes them there, by source=coco"),
    ("dataset=coco", "Did you mean data=coco?"),
    ("evaluation=none", WORKS),
    ("evaluation=scenes_caption", WORKS),
    ("evaluation=[none]", WORKS),
    ("logger=wandb", WORKS),
    ("wandb=true", "Did you mean logger=wandb?"),
    ("logger=tensorboard", WORKS),
    ("logger=none", "leave it out"),
    ("logger=csv", WORKS),
    ("logger=false", "logger=csv, tensorboard, trackio, wandb"),
    ("resume=x", "resume"),
    ("ckpt_path=x", "Did you mean resume?"),
    ("resume_from_checkpoint=x", "Did you mean resume?"),
    ("seed=abc", "seed=abc: Value 'abc' of type 'str' could not be converted to Integer"),
    ("'name=a b'", WORKS),
    ("name=a=b", "\"name='a=b'\""),
    ("\"name='a=b'\"", WORKS),
    ("hydra.run.dir=a=b", "\"hydra.run.dir='a=b'\""),
    ("train", "train: an override is key=value"),
    ("trainer=gpu", "one GPU is taken by trainer=auto"),
    ("deepspeed=zero2", "trainer/strategy=fsdp"),
    ("trainer/strategy=deepspeed", "trainer/strategy=fsdp"),
    ("lora_enable=true", "model/lora=qv stage.trainable=[connector,markers,adapter]"),
    ("model/lora=qv stage.trainable=[connector,markers,adapter]", WORKS),
    ("lora_r=64", "has it as model.lora.r"),
    ("model/lora=qv stage.trainable=[connector,markers,adapter] model.lora.r=64", WORKS),
    ("evaluation=coco", "evaluation=coco_karpathy"),
    ("evaluation=vqa", "evaluation=vqav2"),
    ("report_to=wandb", "logger=wandb"),
    ("mm_projector_type=mlp2x_gelu", "model/connector=patch_mlp"),
    ("model/connector=qformer", "model/connector=resampler"),
    ("vision_tower=openai/clip", "model/vision_encoder=clip_l14_336"),
    ("model_name_or_path=x", "model.language_model.path=FOLDER"),
    ("model=llama", "model=real model/language_model=llama_7b"),
    ("fp16=true", "trainer.precision=bf16-mixed"),
    ("gradient_checkpointing=true", "trainer.activation_checkpointing"),
    ("trainer.activation_checkpointing=true", WORKS),
    ("save_steps=500", "Did you mean trainer.checkpoint_every_steps?"),
    ("save_total_limit=2", "Did you mean trainer.keep_checkpoints?"),
    ("eval_steps=10", "Did you mean trainer.val_check_interval?"),
    ("logging_steps=1", "Did you mean trainer.log_every_steps?"),
    ("model_max_length=2048", "Did you mean stage.max_text_tokens?"),
    ("freeze_backbone=true", "Did you mean stage.trainable?"),
    ("tune_mm_mlp_adapter=true", "Did you mean stage.trainable?"),
    ("pretrain_mm_mlp_adapter=x", "Did you mean init_from?"),
    ("data_path=x", "visllama prepare source=instruct"),
    ("image_folder=x", "visllama prepare source=instruct"),
    ("trainer.fast_dev_run=true", "experiment=smoke"),
    ("trainer.limit_train_batches=10", "Did you mean trainer.max_steps?"),
    ("trainer.default_root_dir=x", "Did you mean hydra.run.dir?"),
    ("seed_everything=1", "Did you mean seed?"),
    ("callbacks=model_checkpoint", "trainer.checkpoint_every_steps=N"),
    ("load_in_4bit=true", "trainer.precision=bf16-true"),
    ("stage=sft", "stage=finetune"),
    ("push_to_hub=true", "leave it out"),
    ("callbacks=early_stopping", WORKS),
    ("'callbacks=[early_stopping,keep_best]'", WORKS),
    ("'callbacks=[val_cider,keep_best]' callbacks.keep_best.monitor=val/CIDEr callbacks.keep_best.mode=max", WORKS),
    ("callbacks=nope", "callbacks=early_stopping, keep_best, val_cider; one of your own is found by --config-dir DIR"),
    ("adam_beta2=0.95", "Did you mean optim.betas?"),
    ("mm_projector_lr=2e-5", "Did you mean optim.lr_by_part.connector?"),
    ("mm_use_im_start_end=False", "always stands between two learned markers"),
    ("image_aspect_ratio=pad", "the vision encoder's own processor"),
    ("load_best_model_at_end=True", "callbacks=keep_best"),
    ("early_stopping_patience=3", "callbacks.early_stopping.patience=N"),
    ("trainer.deterministic=true", "seed= fixes all that is drawn"),
    ("trainer.limit_val_batches=10", "Did you mean data.num_val_records?"),
    ("trainer.profiler=simple", "Did you mean profiler=simple?"),
    ("trainer.callbacks=early_stopping", "Did you mean callbacks=early_stopping?"),
    ("trainer.val_fraction=0.2", "Did you mean trainer.val_check_interval?"),
    ("trainer.val_check_interval=500", WORKS),
    ("trainer.val_check_interval=1.5", "a whole number of steps"),
    ("temperature=0.2", "+decoding.do_sample=true +decoding.temperature=0.2"),
    ("+decoding.do_sample=true +decoding.temperature=0.2", WORKS),
    ("dtype=bf16", "Did you mean trainer.precision?"),
    ("world_size=8", "Did you mean trainer.devices?"),
    ("torch_compile=True", "the model is not compiled"),
    ("tokenizer=x", "model.language_model.path=FOLDER"),
    ("image_size=336", "model/vision_encoder=clip_l14_336"),
    ("optim.lr = 1e-3", "optim.lr: an override is key=value"),
    ("stage.trainable=connector", "stage.trainable=[connector]"),
]  # fmt: skip


@pytest.mark.parametrize(("typed", "told"), TYPED)
def test_it_works_or_the_message_says_what_to_type(compose_config, typed, told):
    message = refusal(compose_config, "train", *shlex.split(typed))
    assert message is None if told is WORKS else told in message, message


@pytest.mark.parametrize(
    ("place", "content", "typed", "told"),
    [
        ("data/source/mine", "_target_: lab.Mine", "data/source=[mine]", "# @package data.sources.mine"),
        ("logger/mine", "_target_: lab.Mine", "logger=mine", "# @package logger.NAME"),
        ("callbacks/mine", "_target_: lab.Mine\nevery_steps: 2", "callbacks=mine", "# @package callbacks.NAME"),
    ],
)
def test_an_option_of_ones_own_without_its_first_line_is_told_which(tmp_path, place, content, typed, told):
    path = tmp_path / "conf" / f"{place}.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(content)
    ended = visllama(tmp_path, "--config-dir", "conf", typed)
    assert ended.returncode == 2 and told in ended.stderr, ended.stderr


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
        ("--version", "visllama 0.1.0 (torch "),
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
        ("--lora_enable True", "model/lora=qv"),
        ("lr=1e-3", "Did you mean optim.lr?"),
        ("trainer=ddp", "did you mean trainer/strategy=ddp?"),
        ("optim.lr=1e-3,1e-4", "-m optim.lr=1e-3,1e-4"),
        ("--config-name x", "--config-name x"),
        ("--config-dir nowhere", "nowhere"),
        ("-m seed=1,2,3 --cfg job", "Only one of --run, --multirun, --cfg"),
        ("logger=null", "logger=csv, tensorboard, trackio, wandb"),
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
