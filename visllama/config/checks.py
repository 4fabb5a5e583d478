"""Check a verb's whole configuration before any weight is loaded: contradictions, types, ranges, and missing files.

There is one public function for each verb, or for each kind of verb. Nothing here needs torch, so that an error comes
at once; the checks that need it are in `dry_run.py`.
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
    """Check the configuration of `train`, before any weight is loaded.

    Every key must have a value and be known, the values of each group must be in their ranges, and the folders that
    `resume` and `init_from` name must exist. `check_parts` in `dry_run.py` checks later whether classes take their
    arguments.

    Args:
        cfg: The configuration that Hydra has composed, without the node `hydra`; it is not changed.

    Raises:
        ConfigError: At the first mistake; the message names the key, the value found, and what to do.
    """
    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        raise ConfigError(f"no value for {', '.join(missing)}: give it as {missing[0]}=VALUE")

    # Keys come before values: a misspelt key explains a value that is wrong.
    check_known(cfg)
    check_nodes(cfg)
    check_loggers(cfg)
    _check_shared(cfg)

    require(
        cfg.trainer.precision != "16-true",
        "trainer.precision=16-true: gradients vanish or overflow in a language model in fp16: train by "
        "trainer.precision=bf16-true, or bf16-mixed; fp16 is for evaluate, caption and visllama.load",
    )
    require(
        not cfg.resume or (Path(cfg.resume) / ".hydra").is_dir(),
        f"resume={cfg.resume}: no folder of a run: give the one that holds its .hydra/",
    )
    _check_seed(cfg.seed)
    require(
        not cfg.init_from or _is_weights_folder(cfg.init_from),
        f"init_from={cfg.init_from}: holds no visllama.json: give the weights/ folder of a run",
    )

    check_stage(cfg.stage)
    check_adapter(cfg)
    micro_batch_size = cfg.micro_batch_size
    require(
        0 < micro_batch_size < math.inf,
        f"micro_batch_size={micro_batch_size}: must be more than 0, and finite",
    )
    check_data(cfg.data)
    check_optim(cfg.optim, cfg.stage.trainable)
    find_objective(cfg)


def check_inspect(cfg: DictConfig) -> None:
    """Check the configuration of `inspect`, which shows either a run of `train` or the connector of trained weights.

    Without `weights`, the configuration is checked as that of a run of `train`. With `weights`, they must exist, and
    exactly one caption evaluation must be chosen, on whose pictures the connector is studied.

    Args:
        cfg: The configuration that Hydra has composed, without the node `hydra`.

    Raises:
        ConfigError: At the first mistake; the message names the key, the value found, and what to do.
    """
    if cfg.weights is not None:
        _check_inspected_weights(cfg)
        return

    # Without weights, inspect builds the model that a run would train.
    check_train(cfg)
    require(
        not cfg.resume,
        f"resume={cfg.resume}: inspect shows a run from its first step: give what the run was given",
    )
    for key in ("samples", "num_samples"):
        require(cfg[key] > 0, f"{key}={cfg[key]}: must be more than 0")
    check_not_typed("num_pictures", "is read with weights= alone; num_samples= is how many samples are counted")


def _check_inspected_weights(cfg: DictConfig) -> None:
    """Check that `weights` holds weights, and that one caption evaluation is chosen, whose captions are not sampled."""
    check_known(cfg)
    check_groups_typed("inspect weights=", READ_BY_CONNECTOR, "since the model is described inside the weights")
    check_typed("inspect weights=", READ_BY_CAPTION)

    require(
        _is_weights_folder(str(cfg.weights)),
        f"weights={cfg.weights}: holds no visllama.json: give the weights/ folder of a run",
    )
    require(
        cfg.num_pictures >= 2,
        f"num_pictures={cfg.num_pictures}: must be 2 or more: captions of different pictures are compared",
    )
    require(cfg.samples > 0, f"samples={cfg.samples}: must be more than 0")
    _check_shared(cfg)

    names = list(cfg.evaluation)
    require(
        len(names) == 1,
        f"evaluation=[{','.join(names)}]: a connector is looked at on the pictures of one caption evaluation: name "
        f"one, as 'evaluation=[scenes_caption]'",
    )
    name = names[0]
    evaluation = cfg.evaluation[name]
    require(
        evaluation.task == "caption",
        f"evaluation=[{name}]: its task is {evaluation.task}: a connector is looked at on pictures with captions: name "
        f"a caption evaluation, as 'evaluation=[scenes_caption]'",
    )

    # Sampled captions would differ between two pictures even if the connector gave the same for both.
    settings = {"decoding": cfg.decoding, f"evaluation.{name}.decoding": evaluation.decoding}
    for key, decoding in settings.items():
        require(
            not decoding.get("do_sample"),
            f"{key}.do_sample=true: captions would differ by chance: leave it out",
        )


def check_plan(cfg: DictConfig) -> None:
    """Check the configuration of `plan`: all that `check_train` checks, then the keys that only `plan` has.

    Only `plan` has `gpu` (the name of a known graphics card), `utilisation` (the share of the card's peak speed that is
    reached, above 0 and at most 1), `network_gb_s`, `text_tokens`, `samples`, and `out` (a file that can be written).
    `resume` must not be given.

    Args:
        cfg: The configuration that Hydra has composed, without the node `hydra`.

    Raises:
        ConfigError: At the first mistake; the message names the key, the value found, and what to do.
    """
    check_train(cfg)
    require(
        not cfg.resume,
        f"resume={cfg.resume}: plan computes a run from its config: give what the run was given",
    )

    choose("gpu", cfg.gpu, tuple(CARDS))
    share = cfg.utilisation
    require(0 < share <= 1, f"utilisation={share}: must be more than 0, and at most 1")
    network = cfg.network_gb_s
    require(
        0 < network < math.inf,
        f"network_gb_s={network}: must be more than 0, and finite",
    )

    num_tokens = cfg.text_tokens
    if num_tokens is not None:
        most_tokens = cfg.stage.max_text_tokens
        require(
            0 < num_tokens < math.inf,
            f"text_tokens={num_tokens}: must be more than 0, or null",
        )
        require(
            num_tokens <= most_tokens,
            f"text_tokens={num_tokens}: more than stage.max_text_tokens={most_tokens}, at which texts are cut: lower "
            f"one, or raise the other",
        )

    num_samples = cfg.samples
    require(
        num_samples is None or num_samples > 0,
        f"samples={num_samples}: must be more than 0, or null to count them",
    )
    if cfg.out is not None:
        _check_out_file(cfg.out, "plan.json")


def check_inference(cfg: DictConfig, verb: str, needs: Sequence[str]) -> None:
    """Check the configuration of `caption`, `ask`, `chat` or `demo`, before any weight is loaded.

    The keys in `needs` must have values, every key must be known, the folders of weights must exist, and the batch size
    and the group `trainer` must be in their ranges.

    Args:
        cfg: The configuration that Hydra has composed, without the node `hydra`.
        verb: The name of the verb, for the message.
        needs: An example `key=value` for each key without which the verb cannot run, for example
            ["weights=RUN/weights"].

    Raises:
        ConfigError: At the first mistake; the message names the key and what to do.
    """
    for word in needs:
        key = word.partition("=")[0]
        require(
            not OmegaConf.is_missing(cfg, key),
            f"no value for {key}: give {' '.join(needs)}",
        )

    check_known(cfg)
    check_typed(verb, READ_BY_CAPTION)

    # `demo` takes several.
    folders = cfg.weights if OmegaConf.is_list(cfg.weights) else [cfg.weights]
    for folder in folders:
        require(Path(str(folder)).exists(), f"weights={folder}: no such folder")
    # `chat` and `demo` answer one at a time.
    if "batch_size" in cfg:
        require(cfg.batch_size > 0, f"batch_size={cfg.batch_size}: must be more than 0")
    _check_shared(cfg)


def check_export(cfg: DictConfig) -> None:
    """Check the configuration of `export`, before any weight is loaded.

    `weights`, `format` and `out` must be given, the weights must exist, and all other values must have the right form.
    The Hugging Face hub is not asked whether a name of `vision_encoder`, `language_model` or `push` exists there.

    Raises:
        ConfigError: At the first mistake; the message names the key, the value found, and what to do.
    """
    for key in ("weights", "format", "out"):
        needed = f"weights=RUN/weights format={'|'.join(EXPORT_FORMATS)} out=DIR"
        require(not OmegaConf.is_missing(cfg, key), f"no value for {key}: give {needed}")

    check_known(cfg)
    require(Path(cfg.weights).exists(), f"weights={cfg.weights}: no such folder")
    choose("format", cfg.format, EXPORT_FORMATS)
    choose("dtype", cfg.dtype, EXPORT_DTYPES)

    size = str(cfg.max_shard_size)
    is_size = re.fullmatch(r"[1-9][0-9]*(KB|MB|GB)", size) is not None
    require(is_size, f"max_shard_size={size}: give a number and KB, MB or GB, as 5GB")
    for key in ("vision_encoder", "language_model", "push"):
        name = cfg[key]
        require(
            name is None or re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None,
            f"{key}={name}: give its name on the hub, as ORGANISATION/NAME",
        )


def check_report(cfg: DictConfig) -> None:
    """Check the configuration of `report`, before any run is read.

    `runs` must name at least one run. `evaluations`, `rows`, `over` and `columns` are null or hold names that are not
    empty. `format` must be known, `published` must be an existing file, and `out` a path at which a file can be made.
    Whether the folders of the runs exist is not checked here.

    Raises:
        ConfigError: At the first mistake; the message names the key, the value found, and what to do.
    """
    require(
        not OmegaConf.is_missing(cfg, "runs"),
        "no value for runs: give 'runs=[A,B]', the folders of runs",
    )
    check_known(cfg)
    choose("format", cfg.format, REPORT_FORMATS)
    num_pictures = cfg.num_pictures
    require(num_pictures >= 0, f"num_pictures={num_pictures}: must be 0 or more")

    for key in ("runs", "evaluations", "rows", "over", "columns"):
        value = cfg[key]
        if value is None:
            continue
        # A single name needs no brackets.
        words = list(value) if OmegaConf.is_list(value) else [value]
        are_names = all(isinstance(word, str) and word for word in words)
        require(are_names, f"{key}={value}: give names, as {key}=A,B")
    # `runs=null` and `runs=[]` hold nothing to compare.
    require(bool(cfg.runs), "runs=[]: give 'runs=[A,B]', the folders of runs")

    if cfg.published is not None:
        require(Path(cfg.published).is_file(), f"published={cfg.published}: no such file")
    if cfg.out is not None:
        _check_out_file(cfg.out, "table.tex")


def check_benchmark(cfg: DictConfig) -> None:
    """Check the configuration of `benchmark`: its keys, the names of a measurement (`what`) and a size, and `seed`.

    Raises:
        ConfigError: At the first mistake; the message names the key, the value found, and what may be given.
    """
    check_known(cfg)
    options = ", ".join(f"what={name}" for name in BENCHMARKS)
    require(cfg.what in BENCHMARKS, f"what={cfg.what}: this version measures {options}")
    choose("size", cfg.size, BENCHMARK_SIZES)
    _check_seed(cfg.seed)


def check_evaluate(cfg: DictConfig) -> None:
    """Check the configuration of `evaluate`, before any weight is loaded.

    Exactly one of `weights` and `predictions` has to be given, and with `predictions` also `references`. All files and
    folders that are named have to exist. Keys that only the scoring of predictions reads (`questions`, `metrics`, ...)
    must keep their defaults beside `weights`.

    Args:
        cfg: The configuration that Hydra has composed, without the node `hydra`.

    Raises:
        ConfigError: At the first mistake; the message names the key and what to do.
    """
    check_known(cfg)
    judged_keys = [key for key in ("weights", "predictions") if cfg[key]]
    require(
        len(judged_keys) == 1,
        f"give one of weights=RUN/weights and predictions=FILE (with references=FILE); found "
        f"{' and '.join(judged_keys) or 'neither'}",
    )

    if cfg.predictions:
        kind = "answers are scored against annotations" if cfg.questions else "captions are scored against references"
        require(bool(cfg.references), f"references=FILE is missing: {kind}")
    else:
        require(
            not cfg.questions,
            f"questions={cfg.questions} is read with predictions=FILE references=FILE alone: with weights=, what is "
            f"asked is chosen by evaluation=",
        )

    choose("tokenizer", cfg.tokenizer, TOKENIZERS)
    for metric in cfg.metrics:
        choose("metrics", metric, METRICS)
    _check_caption_keys(cfg)

    for key in ("weights", "predictions", "references", "questions", "document_frequencies"):
        if not cfg[key]:
            continue
        path = Path(cfg[key])
        require(path.exists(), f"{key}={cfg[key]}: no such file or folder")
        require(
            key == "weights" or not path.is_dir(),
            f"{key}={cfg[key]}: a folder: give a file",
        )

    # Scoring a file of predictions loads no model, and so reads nothing of `trainer`.
    check_typed("evaluate", READ_BY_EVALUATE if cfg.weights else ())
    _check_shared(cfg)


def _check_caption_keys(cfg: DictConfig) -> None:
    """Check that the keys for scoring a file of captions have their defaults where no such file is given."""
    # A key that has its default value counts as untouched.
    is_changed = {
        "metrics": list(cfg.metrics) != list(METRICS),
        "tokenizer": cfg.tokenizer != "ptb",
        "document_frequencies": cfg.document_frequencies,
        "subset": cfg.subset,
    }
    changed_keys = [key for key, value in is_changed.items() if value]
    scores_captions = cfg.predictions and not cfg.questions
    require(
        not changed_keys or scores_captions,
        f"{' and '.join(changed_keys)} is read with predictions=FILE references=FILE of captions alone: with weights=, "
        f"each evaluation has its own, as evaluation.NAME.tokenizer=ptb_keep_punctuation",
    )


def _check_shared(cfg: DictConfig) -> None:
    """Check the group `trainer`, the evaluations and all counts, which several verbs have in common."""
    check_trainer(cfg.trainer)
    check_evaluations(cfg.get("evaluation", {}))
    check_counts(cfg)


def _check_seed(seed: int) -> None:
    """Check that a seed is one that every random generator takes."""
    # numpy's takes 32 bits; torch's would take more.
    require(0 <= seed < 2**32, f"seed={seed}: must be 0 or more, and less than 2**32")


def _check_out_file(out: str, example: str) -> None:
    """Check that a file can be written at `out`.

    Args:
        out: The value of the key `out`.
        example: A name for the file, for the message where `out` is a folder.
    """
    path = Path(out)
    require(not path.is_dir(), f"out={out}: a folder: give a file, as out={path / example}")
    require(
        path.parent.is_dir(),
        f"out={out}: there is no folder {path.parent}: make it, or give another file",
    )


def _is_weights_folder(folder: str) -> bool:
    """Return whether a folder holds the file `visllama.json`, which a run writes beside its weights."""
    return (Path(folder) / "visllama.json").is_file()
