"""One training run, from its config to trained weights, their scores, and the run folder."""

from __future__ import annotations

import logging
import shlex
import time
import warnings
from pathlib import Path

import lightning.pytorch as pl
import torch
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from visllama.config import ConfigError, build, check_train, evaluations, override
from visllama.console import say
from visllama.data.collate import Collator
from visllama.data.datamodule import CaptionData
from visllama.evaluation.captioner import Captioner
from visllama.evaluation.report import provenance, write_json
from visllama.evaluation.runner import judge, sample_maker
from visllama.hardware import find_precision, frozen_dtype
from visllama.model.weights import build_model, save_weights
from visllama.training.callbacks import FrozenWeights, build_callbacks
from visllama.training.module import VisLlamaModule
from visllama.training.strategy import build_strategy, forget_ranks, use_child_command
from visllama.training.sweep import is_selecting

SAMPLES_AT_ONCE = 32
"""Batch size of the sample captions shown at validation."""


def train(cfg: DictConfig) -> dict | None:
    """Train, judge, and write the run folder; gives metrics.json's content on rank 0, None elsewhere.

    Raises:
        ConfigError: If the config contradicts itself; nothing is loaded then.
    """
    check_train(cfg)
    folder = Path(HydraConfig.get().runtime.output_dir)
    rank_zero_only(OmegaConf.save)(cfg, folder / "config.yaml", resolve=True)
    _quieten_lightning()
    torch.set_num_threads(cfg.trainer.threads)
    pl.seed_everything(cfg.seed, workers=True, verbose=False)

    started = time.perf_counter()
    parts, text = model_parts(cfg), {"prompt": cfg.stage.prompt, "max_text_tokens": cfg.stage.max_text_tokens}
    model = build_model(parts, cfg.stage.trainable)
    sources = {split: build(cfg.data[split]) for split in ("train", "val")}
    num_steps = count_steps(cfg, sources["train"].num_pairs)
    model.load_base_weights(frozen_dtype(find_precision(cfg.trainer)))
    maker = sample_maker(model, **text)
    collator = Collator(
        model.tokenizer.pad_token_id, model.num_image_tokens, maker.transform.size_px, cfg.micro_batch_size
    )
    data = CaptionData(
        **sources,
        maker=maker,
        collator=collator,
        global_batch_size=cfg.stage.global_batch_size,
        num_steps=num_steps,
        num_workers=cfg.data.num_workers,
        seed=cfg.seed,
    )
    module = VisLlamaModule(model, OmegaConf.to_container(cfg.optim, resolve=True), num_steps)
    trainer = build_trainer(cfg, num_steps, folder, Captioner(maker, cfg.decoding, SAMPLES_AT_ONCE))
    fit_started = time.perf_counter()
    trainer.fit(module, data)
    if trainer.interrupted:
        raise KeyboardInterrupt
    seconds = {"setup_seconds": fit_started - started, "fit_seconds": time.perf_counter() - fit_started}
    forget_ranks()
    if not trainer.is_global_zero:
        return None

    save_weights(model, parts, text, folder / "weights")
    metrics: dict = {"evaluations": {}, "train": training_facts(trainer, cfg)}
    if cfg.judge:
        judge_started = time.perf_counter()
        judged_on = evaluations(cfg, "val" if is_selecting() else None)
        metrics["evaluations"] = judge(model, maker, judged_on, cfg.decoding, folder, cfg.trainer)
        seconds["judge_seconds"] = time.perf_counter() - judge_started
    metrics["train"] |= {name: round(value, 1) for name, value in seconds.items()}
    metrics["provenance"] = provenance(
        seed=cfg.seed,
        precision=find_precision(cfg.trainer),
        overrides=list(HydraConfig.get().overrides.task),
        model=parts,
        num_ranks=trainer.world_size,
    )
    write_json(folder / "metrics.json", metrics)
    say(
        ", ".join(f"{name.removesuffix('_seconds')} {value:.0f} s" for name, value in seconds.items()),
        f"\nWrote {folder}: weights/ metrics.json curves.png" + (" evaluations/" if metrics["evaluations"] else ""),
        f"Judge it again, or elsewhere:  python evaluate.py {shlex.quote(override('weights', folder / 'weights'))}",
    )
    return metrics


def _quieten_lightning() -> None:
    """Keep off the terminal what our own tables say better, and warnings about what is meant (frozen parts in eval)."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in (
        "Found .* module.* in eval mode",
        ".*treespec.*",
        "The number of training batches",
        ".*does not have many workers",
    ):
        warnings.filterwarnings("ignore", message=message)


def model_parts(cfg: DictConfig) -> dict[str, dict]:
    """Describe the model by each part's kind (the name of the chosen YAML) and arguments."""
    choices = HydraConfig.get().runtime.choices
    parts = OmegaConf.to_container(cfg.model, resolve=True)
    return {
        name: {"kind": choices[f"model/{name}"], "arguments": {k: v for k, v in part.items() if k != "_target_"}}
        for name, part in parts.items()
    }


def count_steps(cfg: DictConfig, num_pairs: int) -> int:
    """Give the number of optimizer steps: `trainer.max_steps`, or what `stage.epochs` makes.

    Raises:
        ConfigError: If that is none.
    """
    steps = cfg.trainer.max_steps or int(cfg.stage.epochs * num_pairs) // cfg.stage.global_batch_size
    if steps == 0:
        raise ConfigError(
            f"stage.epochs={cfg.stage.epochs} over {num_pairs} pairs makes no whole batch of stage.global_batch_size="
            f"{cfg.stage.global_batch_size}: lower the batch size, or give trainer.max_steps"
        )
    return steps


def build_trainer(cfg: DictConfig, num_steps: int, folder: Path, captioner: Captioner) -> pl.Trainer:
    """Make Lightning's Trainer; the run is one long epoch, and one of its batches is one optimizer step."""
    use_child_command()
    fraction = cfg.trainer.val_fraction
    logger = build(cfg.logger)
    resolved = OmegaConf.to_container(cfg, resolve=True)
    logger.log_hyperparams(resolved)
    return pl.Trainer(
        accelerator=cfg.trainer.accelerator,
        devices=cfg.trainer.devices,
        num_nodes=cfg.trainer.num_nodes,
        strategy=build_strategy(resolved["trainer"]["strategy"]),
        precision=find_precision(cfg.trainer),
        max_epochs=1,
        max_steps=num_steps,
        val_check_interval=max(1, round(num_steps * fraction)) if fraction else None,
        limit_val_batches=1.0 if fraction else 0,
        log_every_n_steps=cfg.trainer.log_every_steps,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_model_summary=False,
        logger=logger,
        callbacks=build_callbacks(folder, captioner, cfg.micro_batch_size),
        default_root_dir=folder,
    )


def training_facts(trainer: pl.Trainer, cfg: DictConfig) -> dict:
    """Give metrics.json's `train`: what was done, and the last losses."""
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    facts = {"steps": trainer.global_step, "samples": trainer.global_step * cfg.stage.global_batch_size}
    if "train/samples_per_second" in logged:
        facts["samples_per_second"] = round(logged["train/samples_per_second"], 1)
    watch = next(callback for callback in trainer.callbacks if isinstance(callback, FrozenWeights))
    facts["frozen_sha256"] = watch.before  # and after: the run would have stopped with an error
    return facts | {name: value for name, value in logged.items() if name.endswith("/loss")}
