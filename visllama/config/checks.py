"""What is refused before any weight is loaded: contradictions, wrong types and ranges, files that are not there.

Nothing here needs torch, so it comes first and at once; what does is in `dry_run.py`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from visllama.config.check_groups import (
    check_adapter,
    check_counts,
    check_data,
    check_evaluations,
    check_optim,
    check_stage,
    check_trainer,
)
from visllama.config.check_keys import check_groups_typed, check_known, check_nodes, check_not_typed, check_typed
from visllama.config.check_loggers import check_loggers
from visllama.config.choices import (
    BENCHMARK_SIZES,
    BENCHMARKS,
    EXPORT_DTYPES,
    EXPORT_FORMATS,
    METRICS,
    READ_BY_CAPTION,
    READ_BY_CONNECTOR,
    READ_BY_EVALUATE,
    REPORT_FORMATS,
    TOKENIZERS,
    choose,
)
from visllama.config.objective import find_objective
from visllama.errors import ConfigError, require
from visllama.machine.cards import CARDS


def check_train(cfg: DictConfig) -> None:
    """Refuse contradictions before any weight is loaded.

    Raises:
        ConfigError: Naming the key, the value found, and what to do.
    """
    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        raise ConfigError(f"no value for {', '.join(missing)}: give it as {missing[0]}=VALUE")
    check_known(cfg)
    check_nodes(cfg)
    check_loggers(cfg)
    _check_shared(cfg)
    require(cfg.trainer.precision != "16-true",
            "trainer.precision=16-true: gradients vanish or overflow in a language model in fp16: train by "
            "trainer.precision=bf16-true, or bf16-mixed; fp16 is for evaluate, caption and visllama.load")  # fmt: skip
    require(not cfg.resume or (Path(cfg.resume) / ".hydra").is_dir(),
            f"resume={cfg.resume}: no folder of a run: give the one that holds its .hydra/")  # fmt: skip
    require(0 <= cfg.seed < 2**32, f"seed={cfg.seed}: must be 0 or more, and less than 2**32")
    require(not cfg.init_from or (Path(cfg.init_from) / "visllama.json").is_file(),
            f"init_from={cfg.init_from}: holds no visllama.json: give the weights/ folder of a run")  # fmt: skip
    check_stage(cfg.stage)
    check_adapter(cfg)
    require(
        0 < cfg.micro_batch_size < math.inf,
        f"micro_batch_size={cfg.micro_batch_size}: must be more than 0, and finite",
    )
    check_data(cfg.data)
    check_optim(cfg.optim, cfg.stage.trainable)
    find_objective(cfg)


def check_inspect(cfg: DictConfig) -> None:
    """Refuse what `train` would, and to look at nothing; with `weights=`, what cannot be asked of weights.

    Raises:
        ConfigError: Naming the key, the value found, and what to do.
    """
    if cfg.weights is not None:
        _check_inspected_weights(cfg)
        return
    check_train(cfg)
    require(
        not cfg.resume, f"resume={cfg.resume}: inspect shows a run from its first step: give what the run was given"
    )
    for key in ("samples", "num_samples"):
        require(cfg[key] > 0, f"{key}={cfg[key]}: must be more than 0")
    check_not_typed("num_pictures", "is read with weights= alone; num_samples= is how many samples are counted")


def _check_inspected_weights(cfg: DictConfig) -> None:
    """Refuse to look at the connector of what is no weights folder, or on what are no pictures with captions."""
    check_known(cfg)
    check_groups_typed("inspect weights=", READ_BY_CONNECTOR, "since the model is described inside the weights")
    check_typed("inspect weights=", READ_BY_CAPTION)
    require((Path(str(cfg.weights)) / "visllama.json").is_file(),
            f"weights={cfg.weights}: holds no visllama.json: give the weights/ folder of a run")  # fmt: skip
    require(cfg.num_pictures >= 2, f"num_pictures={cfg.num_pictures}: must be 2 or more: what changes with the picture "
            "is looked at")  # fmt: skip
    require(cfg.samples > 0, f"samples={cfg.samples}: must be more than 0")
    _check_shared(cfg)

    names = list(cfg.evaluation)
    require(len(names) == 1, f"evaluation=[{','.join(names)}]: a connector is looked at on the pictures of one caption "
            "evaluation: name one, as 'evaluation=[scenes_caption]'")  # fmt: skip
    task = cfg.evaluation[names[0]].task
    require(task == "caption", f"evaluation=[{names[0]}]: its task is {task}: a connector is looked at on "
            "pictures with captions: name a caption evaluation, as 'evaluation=[scenes_caption]'")  # fmt: skip
    settings = {"decoding": cfg.decoding, f"evaluation.{names[0]}.decoding": cfg.evaluation[names[0]].decoding}
    for key, decoding in settings.items():
        require(not decoding.get("do_sample"), f"{key}.do_sample=true: captions would differ by chance: leave it out")


def check_plan(cfg: DictConfig) -> None:
    """Refuse what `train` would, but for the machine and the data, which need not be here.

    Raises:
        ConfigError: Naming the key, the value found, and what to do.
    """
    check_train(cfg)
    require(not cfg.resume, f"resume={cfg.resume}: plan computes a run from its config: give what the run was given")
    choose("gpu", cfg.gpu, tuple(CARDS))
    share, network, text, longest = cfg.utilisation, cfg.network_gb_s, cfg.text_tokens, cfg.stage.max_text_tokens
    require(0 < share <= 1, f"utilisation={share}: must be more than 0, and at most 1")
    require(0 < network < math.inf, f"network_gb_s={network}: must be more than 0, and finite")
    require(text is None or 0 < text < math.inf, f"text_tokens={text}: must be more than 0, or null")
    require(
        text is None or text <= longest,
        f"text_tokens={text}: more than stage.max_text_tokens={longest}, at which texts are cut: lower one, or raise "
        f"the other",
    )
    samples = cfg.samples
    require(samples is None or samples > 0, f"samples={samples}: must be more than 0, or null to count them")
    if cfg.out is not None:
        out = Path(cfg.out)
        require(not out.is_dir(), f"out={cfg.out}: a folder: give a file, as out={out / 'plan.json'}")
        require(out.parent.is_dir(), f"out={cfg.out}: there is no folder {out.parent}: make it, or give another file")


def check_inference(cfg: DictConfig, verb: str, needs: Sequence[str]) -> None:
    """Refuse what `caption`, `ask`, `chat` or `demo` cannot do, before any weight is loaded.

    Args:
        cfg: The configuration.
        verb: Which of them it is.
        needs: The words that have to be typed.

    Raises:
        ConfigError: Naming the key and what to do.
    """
    for word in needs:
        key = word.partition("=")[0]
        require(not OmegaConf.is_missing(cfg, key), f"no value for {key}: give {' '.join(needs)}")
    check_known(cfg)
    check_typed(verb, READ_BY_CAPTION)
    folders = cfg.weights if OmegaConf.is_list(cfg.weights) else [cfg.weights]  # `demo` takes several
    for folder in folders:
        require(Path(str(folder)).exists(), f"weights={folder}: no such folder")
    if "batch_size" in cfg:
        require(cfg.batch_size > 0, f"batch_size={cfg.batch_size}: must be more than 0")
    _check_shared(cfg)


def check_export(cfg: DictConfig) -> None:
    """Refuse what `export` cannot write, before any weight is loaded.

    Raises:
        ConfigError: Naming the key, the value found, and what to do.
    """
    for key in ("weights", "format", "out"):
        typed = f"weights=RUN/weights format={'|'.join(EXPORT_FORMATS)} out=DIR"
        require(not OmegaConf.is_missing(cfg, key), f"no value for {key}: give {typed}")
    check_known(cfg)
    require(Path(cfg.weights).exists(), f"weights={cfg.weights}: no such folder")
    choose("format", cfg.format, EXPORT_FORMATS)
    choose("dtype", cfg.dtype, EXPORT_DTYPES)
    size = str(cfg.max_shard_size)
    require(re.fullmatch(r"[1-9][0-9]*(KB|MB|GB)", size) is not None,
            f"max_shard_size={size}: give a number and KB, MB or GB, as 5GB")  # fmt: skip
    for key in ("vision_encoder", "language_model", "push"):
        name = cfg[key]
        require(name is None or re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None,
                f"{key}={name}: give the hub's name of it, as ORGANISATION/NAME")  # fmt: skip


def check_report(cfg: DictConfig) -> None:
    """Refuse what `report` cannot show, before any run is read.

    Raises:
        ConfigError: Naming the key, the value found, and what to do.
    """
    require(not OmegaConf.is_missing(cfg, "runs"), "no value for runs: give 'runs=[A,B]', the folders of runs")
    check_known(cfg)
    choose("format", cfg.format, REPORT_FORMATS)
    require(cfg.num_pictures >= 0, f"num_pictures={cfg.num_pictures}: must be 0 or more")
    for key in ("runs", "evaluations", "rows", "over", "columns"):
        value = cfg[key]
        words = list(value) if OmegaConf.is_list(value) else [value]
        is_list = all(isinstance(word, str) and word for word in words)
        require(value is None or is_list, f"{key}={value}: give names, as {key}=A,B")
    require(bool(cfg.runs), "runs=[]: give 'runs=[A,B]', the folders of runs")
    if cfg.published is not None:
        require(Path(cfg.published).is_file(), f"published={cfg.published}: no such file")
    if cfg.out is not None:
        out = Path(cfg.out)
        require(not out.is_dir(), f"out={cfg.out}: a folder: give a file, as out={out / 'table.tex'}")
        require(out.parent.is_dir(), f"out={cfg.out}: there is no folder {out.parent}: make it, or give another file")


def check_benchmark(cfg: DictConfig) -> None:
    """Refuse what is not measured, before anything is.

    Raises:
        ConfigError: Naming the key, the value found, and what there is.
    """
    check_known(cfg)
    require(
        cfg.what in BENCHMARKS,
        f"what={cfg.what}: this version measures {', '.join(f'what={name}' for name in BENCHMARKS)}",
    )
    choose("size", cfg.size, BENCHMARK_SIZES)
    require(0 <= cfg.seed < 2**32, f"seed={cfg.seed}: must be 0 or more, and less than 2**32")


def check_evaluate(cfg: DictConfig) -> None:
    """Refuse a call that says neither, or both, of what to judge.

    Raises:
        ConfigError: Naming the key and what to do.
    """
    check_known(cfg)
    given = [key for key in ("weights", "predictions") if cfg[key]]
    require(len(given) == 1, "give one of weights=RUN/weights and predictions=FILE (with references=FILE); "
             f"found {' and '.join(given) or 'neither'}")  # fmt: skip
    if cfg.predictions:
        what = "answers are scored against annotations" if cfg.questions else "captions are scored against references"
        require(bool(cfg.references), f"references=FILE is missing: {what}")
    else:
        require(not cfg.questions, f"questions={cfg.questions} goes with predictions=FILE references=FILE alone: what "
                 "weights= are asked is chosen by evaluation=")  # fmt: skip
    choose("tokenizer", cfg.tokenizer, TOKENIZERS)
    for metric in cfg.metrics:
        choose("metrics", metric, METRICS)
    of_captions = {
        "metrics": list(cfg.metrics) != list(METRICS),
        "tokenizer": cfg.tokenizer != "ptb",
        "document_frequencies": cfg.document_frequencies,
        "subset": cfg.subset,
    }
    given = [key for key, value in of_captions.items() if value]
    require(
        not given or (cfg.predictions and not cfg.questions),
        f"{' and '.join(given)} goes with predictions=FILE references=FILE of captions: what weights= are judged on "
        f"says it itself, as evaluation.NAME.tokenizer=ptb_keep_punctuation",
    )
    for key in ("weights", "predictions", "references", "questions", "document_frequencies"):
        if cfg[key]:
            path = Path(cfg[key])
            require(path.exists(), f"{key}={cfg[key]}: no such file or folder")
            require(key == "weights" or not path.is_dir(), f"{key}={cfg[key]}: a folder: give a file")
    check_typed("evaluate", READ_BY_EVALUATE if cfg.weights else ())
    _check_shared(cfg)


def _check_shared(cfg: DictConfig) -> None:
    """Check the keys that every verb has which loads a model."""
    check_trainer(cfg.trainer)
    check_evaluations(cfg.get("evaluation", {}))
    check_counts(cfg)
