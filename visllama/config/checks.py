"""What is refused before any weight is loaded: contradictions, wrong types and ranges, files that are not there.

Nothing here needs torch, so it comes first and at once; what does is in `dry_run.py`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from difflib import get_close_matches
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, ListConfig, OmegaConf

from visllama.config.instantiate import targets
from visllama.config.objective import find_objective
from visllama.config.schema import key_names
from visllama.errors import ConfigError, require
from visllama.machine.cards import CARDS
from visllama.model.locate import locate
from visllama.plugins import ALLOWED_TARGETS, ROLES, check_target
from visllama.signatures import matches_hint, wrong_type
from visllama.text.templates import OF_TOKENIZER, find_template

TRAINABLE_PARTS = ("connector", "markers", "adapter", "language_model", "vision_encoder")
METRICS = ("BLEU", "METEOR", "ROUGE-L", "CIDEr")
TASKS = {
    "caption": (METRICS, ("shuffled_images", "blank_images")),
    "vqa": (("accuracy", "accuracy_normalise_all"), ("shuffled_images", "no_images", "majority_answer", "true_facts")),
}
"""What can be judged: each task's metrics, and its controls."""
ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps")
PRECISIONS = ("auto", "32-true", "64-true", "bf16-mixed", "bf16-true", "16-true")
SCHEDULES = ("cosine", "linear", "constant")
SPLITS = ("train", "val", "test")
BENCHMARKS = ("data",)
BENCHMARK_SIZES = ("small", "full")
MOST_THREADS = 1024
READ_BY_EVALUATE = ("accelerator", "devices", "num_nodes", "precision", "strategy", "threads", "timeout_s")
READ_BY_CAPTION = ("accelerator", "precision", "threads")
"""Keys of `trainer` that mean something where nothing is trained."""
OPTIM_TYPES = {
    "lr": float, "weight_decay": float, "schedule": str, "warmup_fraction": float, "clip_norm": float | None,
    "lr_by_part": Mapping,
}  # fmt: skip
"""Keys of `optim` that we read ourselves,"""
OWN_OPTIM_KEYS = OPTIM_TYPES.keys() - {"lr", "weight_decay"}
"""and those of them that no optimizer of torch's takes."""


def _choose(key: str, value: object, options: Sequence[str]) -> None:
    if value in options:
        return
    text = str(value)
    by_lower = {option.lower(): option for option in options}
    close = [option for option in options if text and option.startswith(text)]
    close = close or [by_lower[lower] for lower in get_close_matches(text.lower(), by_lower, 2)]
    meant = f"did you mean {' or '.join(close)}? " if close else ""
    raise ConfigError(f"{key}={value}: {meant}choose {', '.join(options[:-1])} or {options[-1]}")


def check_train(cfg: DictConfig) -> None:
    """Refuse contradictions before any weight is loaded.

    Raises:
        ConfigError: Naming the key, the value found, and what to do.
    """
    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        raise ConfigError(f"no value for {', '.join(missing)}: give it as {missing[0]}=VALUE")
    _check_known(cfg)
    _check_nodes(cfg)
    _check_run(cfg)
    require(cfg.trainer.precision != "16-true",
            "trainer.precision=16-true: gradients vanish or overflow in a language model in fp16: train by "
            "trainer.precision=bf16-true, or bf16-mixed; fp16 is for evaluate, caption and visllama.load")  # fmt: skip
    require(not cfg.resume or (Path(cfg.resume) / ".hydra").is_dir(),
            f"resume={cfg.resume}: no folder of a run: give the one that holds its .hydra/")  # fmt: skip
    require(0 <= cfg.seed < 2**32, f"seed={cfg.seed}: must be 0 or more, and less than 2**32")
    require(not cfg.init_from or (Path(cfg.init_from) / "visllama.json").is_file(),
            f"init_from={cfg.init_from}: holds no visllama.json: give the weights/ folder of a run")  # fmt: skip
    stage = cfg.stage
    for name in stage.trainable:
        require(name in TRAINABLE_PARTS, f"stage.trainable names {name!r}: choose from {', '.join(TRAINABLE_PARTS)}")
    require(len(set(stage.trainable)) == len(stage.trainable), f"stage.trainable={stage.trainable}: a part comes twice")
    require(len(stage.trainable) > 0, "stage.trainable=[] trains nothing: name at least the connector")
    require(len(cfg.data.sources) > 0, "data.sources={} holds no data: choose one, as data=scenes")
    check_adapter(cfg)
    _check_template("stage.template", stage.template)
    for key, value in (("stage.global_batch_size", stage.global_batch_size), ("micro_batch_size", cfg.micro_batch_size),
                       ("stage.epochs", stage.epochs), ("stage.max_text_tokens", stage.max_text_tokens)):  # fmt: skip
        require(0 < value < math.inf, f"{key}={value}: must be more than 0, and finite")
    budget = stage.num_samples
    require(budget is None or budget > 0, f"stage.num_samples={budget}: must be more than 0, or null for stage.epochs")
    workers, val = cfg.data.num_workers, cfg.data.num_val_records
    require(workers >= 0, f"data.num_workers={workers}: must be 0 or more")
    require(val is None or val > 0, f"data.num_val_records={val}: must be more than 0, or null for all")
    for name, node in cfg.data.sources.items():
        weight, prompt = node.get("weight", 1.0), node.get("prompt")
        key = f"data.sources.{name}"
        require(
            matches_hint(weight, float) and 0 < weight < math.inf,
            f"{key}.weight={weight}: must be a number more than 0: the share of the samples beside other sources",
        )
        require(prompt is None or isinstance(prompt, str), wrong_type(f"{key}.prompt", prompt, str | None))
    fraction, run = cfg.data.max_bad_fraction, cfg.data.max_consecutive_bad
    require(0 <= fraction <= 1, f"data.max_bad_fraction={fraction}: must be in [0, 1]")
    require(run > 0, f"data.max_consecutive_bad={run}: must be more than 0")
    require(cfg.data.window_shards > 0, f"data.window_shards={cfg.data.window_shards}: must be more than 0")
    _check_optim(cfg.optim, stage.trainable)
    find_objective(cfg)


def check_adapter(cfg: DictConfig) -> None:
    """Refuse an adapter that does not train, or trains and is not there.

    Raises:
        ConfigError: Naming the keys and what to do.
    """
    has_lora, trainable = cfg.model.get("lora") is not None, cfg.stage.trainable
    require(has_lora or "adapter" not in trainable,
            "stage.trainable names 'adapter', but the model has none: choose one, as model/lora=qv")  # fmt: skip
    require(not has_lora or "adapter" in trainable,
            f"model.lora is given, and stage.trainable={list(trainable)} would leave it as nothing: name adapter "
            f"there, or choose model/lora=none")  # fmt: skip
    require(not has_lora or "language_model" not in trainable,
            "stage.trainable names language_model beside model.lora: train it whole (model/lora=none), or by its "
            "adapter")  # fmt: skip


def _check_template(key: str, template: object) -> None:
    chosen = OmegaConf.to_container(template, resolve=True) if isinstance(template, DictConfig) else template
    require(isinstance(chosen, (str, dict)), f"{key}={chosen}: give a template's name, or its strings")
    if chosen != OF_TOKENIZER:
        try:
            find_template(chosen)
        except ConfigError as error:
            raise ConfigError(f"{key.rpartition('.')[0]}.{error}") from error


def check_inspect(cfg: DictConfig) -> None:
    """Refuse what `train` would, and to look at nothing.

    Raises:
        ConfigError: Naming the key, the value found, and what to do.
    """
    check_train(cfg)
    require(
        not cfg.resume, f"resume={cfg.resume}: inspect shows a run from its first step: give what the run was given"
    )
    for key in ("samples", "num_samples"):
        require(cfg[key] > 0, f"{key}={cfg[key]}: must be more than 0")


def check_plan(cfg: DictConfig) -> None:
    """Refuse what `train` would, but for the machine and the data, which need not be here.

    Raises:
        ConfigError: Naming the key, the value found, and what to do.
    """
    check_train(cfg)
    require(not cfg.resume, f"resume={cfg.resume}: plan computes a run from its config: give what the run was given")
    _choose("gpu", cfg.gpu, tuple(CARDS))
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


def check_caption(cfg: DictConfig) -> None:
    """Refuse what `caption` cannot do, before any weight is loaded.

    Raises:
        ConfigError: Naming the key and what to do.
    """
    for key in ("weights", "images"):
        require(not OmegaConf.is_missing(cfg, key), f"no value for {key}: give weights=RUN/weights images=PATH")
    _check_known(cfg)
    _check_typed("caption", READ_BY_CAPTION)
    require(Path(cfg.weights).exists(), f"weights={cfg.weights}: no such folder")
    require(cfg.batch_size > 0, f"batch_size={cfg.batch_size}: must be more than 0")
    _check_run(cfg)


def check_benchmark(cfg: DictConfig) -> None:
    """Refuse what is not measured, before anything is.

    Raises:
        ConfigError: Naming the key, the value found, and what there is.
    """
    _check_known(cfg)
    require(
        cfg.what in BENCHMARKS,
        f"what={cfg.what}: this version measures {', '.join(f'what={name}' for name in BENCHMARKS)}",
    )
    _choose("size", cfg.size, BENCHMARK_SIZES)
    require(0 <= cfg.seed < 2**32, f"seed={cfg.seed}: must be 0 or more, and less than 2**32")


def check_evaluate(cfg: DictConfig) -> None:
    """Refuse a call that says neither, or both, of what to judge.

    Raises:
        ConfigError: Naming the key and what to do.
    """
    _check_known(cfg)
    given = [key for key in ("weights", "predictions") if cfg[key]]
    require(len(given) == 1, "give one of weights=RUN/weights and predictions=FILE (with references=FILE); "
             f"found {' and '.join(given) or 'neither'}")  # fmt: skip
    if cfg.predictions:
        what = "answers are scored against annotations" if cfg.questions else "captions are scored against references"
        require(bool(cfg.references), f"references=FILE is missing: {what}")
    else:
        require(not cfg.questions, f"questions={cfg.questions} goes with predictions=FILE references=FILE alone: what "
                 "weights= are asked is chosen by evaluation=")  # fmt: skip
    for key in ("weights", "predictions", "references", "questions"):
        if cfg[key]:
            path = Path(cfg[key])
            require(path.exists(), f"{key}={cfg[key]}: no such file or folder")
            require(key == "weights" or not path.is_dir(), f"{key}={cfg[key]}: a folder: give a file")
    _check_typed("evaluate", READ_BY_EVALUATE if cfg.weights else ())
    _check_run(cfg)


def _check_typed(verb: str, read: Sequence[str]) -> None:
    """Refuse keys of `trainer` that were typed and that a verb does not read; groups and conf/local may hold them.

    Raises:
        ConfigError: Naming the key and those that are read.
    """
    typed = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    for word in typed:
        key = word.lstrip("+~").partition("=")[0]
        group, *names = re.split(r"[./]", key)
        if group == "trainer" and names and names[0] not in read:
            known = ", ".join(f"trainer.{name}" for name in read) or "none of trainer.*, since no model is loaded"
            raise ConfigError(f"{key}: {verb} does not read it: leave it out. It reads {known}")


def _check_known(node: DictConfig, prefix: str = "") -> None:
    """Refuse keys that `+` added where every key is known: nothing would read them."""
    schema = OmegaConf.get_type(node)
    fields = key_names(schema) if is_dataclass(schema) else None
    for name in node:
        if fields is not None and name not in fields:
            close = get_close_matches(name, fields, 1)
            here = f"Did you mean {prefix}{close[0]}?" if close else f"Here are {', '.join(prefix + f for f in fields)}"
            raise ConfigError(f"{prefix}{name}: there is no such key, and nothing would read it. {here}")
        if OmegaConf.is_missing(node, name) or OmegaConf.is_interpolation(node, name):
            continue
        child = node[name]
        if isinstance(child, DictConfig):
            _check_known(child, f"{prefix}{name}.")


def _check_run(cfg: DictConfig) -> None:
    """Check what several verbs have: trainer, evaluations, decoding."""
    trainer = cfg.trainer
    _choose("trainer.accelerator", trainer.accelerator, ACCELERATORS)
    _choose("trainer.precision", trainer.precision, PRECISIONS)
    devices = trainer.devices
    counted = matches_hint(devices, int) and (devices > 0 or devices == -1)
    listed = isinstance(devices, ListConfig) and len(devices) > 0 and all(matches_hint(d, int) for d in devices)
    require(
        counted or listed or devices == "auto",
        f"trainer.devices={devices}: give a number of devices, a list of their indices, or auto",
    )
    nodes = trainer.num_nodes
    require(
        nodes == "auto" or (matches_hint(nodes, int) and nodes > 0),
        f"trainer.num_nodes={nodes}: give a number, or auto",
    )
    for name in ("log_every_steps", "keep_checkpoints", "max_skipped_steps", "timeout_s", "threads"):
        require(0 < trainer[name] < math.inf, f"trainer.{name}={trainer[name]}: must be more than 0, and finite")
    code = trainer.preempted_exit_code
    require(0 < code < 256, f"trainer.preempted_exit_code={code}: must be in [1, 255]")
    require(trainer.threads <= MOST_THREADS, f"trainer.threads={trainer.threads}: must be at most {MOST_THREADS}")
    steps, fraction, every = trainer.max_steps, trainer.val_fraction, trainer.checkpoint_every_steps
    require(every is None or every > 0, f"trainer.checkpoint_every_steps={every}: must be more than 0, or null")
    require(steps is None or steps > 0, f"trainer.max_steps={steps}: must be more than 0, or null")
    require(fraction is None or 0 < fraction <= 1, f"trainer.val_fraction={fraction}: must be in (0, 1], or null")
    for name, evaluation in cfg.get("evaluation", {}).items():
        key = f"evaluation.{name}"
        _choose(f"{key}.task", evaluation.task, tuple(TASKS))
        _choose(f"{key}.split", evaluation.split, SPLITS)
        metrics, controls = TASKS[evaluation.task]
        for metric in evaluation.metrics:
            others = [task for task, (known, _) in TASKS.items() if metric in known and task != evaluation.task]
            require(not others, f"{key}.task={evaluation.task}: {key}.metrics names {metric}, which is of "
                     f"{''.join(others)}: it has {', '.join(metrics)}")  # fmt: skip
            _choose(f"{key}.metrics", metric, metrics)
        for control in evaluation.controls:
            _choose(f"{key}.controls", control, controls)
        if evaluation.template is not None:
            _check_template(f"{key}.template", evaluation.template)
    for key, value in _leaves(
        OmegaConf.to_container(cfg), ("model", "data", "evaluation", "decoding", "logger", "callbacks")
    ):
        _check_count(key, value)


def _check_nodes(cfg: DictConfig) -> None:
    """Check that what an option of a group fills in is there, where a value was typed in its place."""
    for name in cfg.model:
        require(name in (*ROLES, "lora"), f"model.{name}: a model's parts are {', '.join(ROLES)} and lora")
    lora = cfg.model.get("lora")
    require(lora is None or isinstance(lora, DictConfig),
            f"model.lora={lora}: an option of a group is chosen with slashes: model/lora={lora}")  # fmt: skip
    nodes = [(f"model.{role}", f"model/{role}", cfg.model.get(role)) for role in ROLES]
    nodes += [(f"data.sources.{name}", "data", node) for name, node in cfg.data.sources.items()]
    nodes += [(f"evaluation.{name}.source", "evaluation", e.source) for name, e in cfg.evaluation.items()]
    nodes.append(("optim", "optim", cfg.optim))
    for group in ("logger", "callbacks"):
        nodes += [(f"{group}.{name}", group, node) for name, node in cfg[group].items()]
    if cfg.trainer.strategy != "auto":
        nodes.append(("trainer.strategy", "trainer/strategy", cfg.trainer.strategy))
    for key, group, node in nodes:
        if not isinstance(node, DictConfig) or "_target_" not in node:
            name = key.rpartition(".")[2]
            require(not key.startswith("data.sources.") or not isinstance(node, DictConfig),
                    f"{key}={node}: no such source is chosen: name it in data/source=[..,{name}], or take it out by "
                    f"'~{key}'")  # fmt: skip
            option = node if isinstance(node, str) else "OPTION"
            how = "an option of a group is chosen with slashes: " if "/" in group else "choose an option of a group: "
            require(False, f"{key}={node}: {how}{group}={option}")
        try:
            for target in targets(OmegaConf.to_container(node)):
                check_target(target, cfg.plugins)
            if key.startswith("model.") and isinstance(node.get("path"), str):
                locate(node.path, cfg.paths.models)
        except ConfigError as error:
            raise ConfigError(f"{key}.{error}") from error


def _check_optim(optim: DictConfig, trainable: Sequence[str]) -> None:
    for name, hint in OPTIM_TYPES.items():
        require(name in optim, f"no value for optim.{name}: give it as optim.{name}=VALUE")
        require(matches_hint(optim[name], hint), wrong_type(f"optim.{name}", optim[name], hint))
    require(0 < optim.lr < math.inf, f"optim.lr={optim.lr}: must be more than 0, and finite")
    _choose("optim.schedule", optim.schedule, SCHEDULES)
    require(0 <= optim.warmup_fraction < 1, f"optim.warmup_fraction={optim.warmup_fraction}: must be in [0, 1)")
    norm, decay = optim.clip_norm, optim.weight_decay
    require(norm is None or norm > 0, f"optim.clip_norm={norm}: must be more than 0, or null")
    require(decay >= 0, f"optim.weight_decay={decay}: must be 0 or more")
    for part, lr in optim.lr_by_part.items():
        require(
            lr is None or (matches_hint(lr, float) and lr > 0),
            f"optim.lr_by_part.{part}={lr}: must be a number more than 0, or null",
        )
        require(
            lr is None or part in trainable,
            f"optim.lr_by_part names {part!r}, which does not train: stage.trainable={list(trainable)}",
        )


def _leaves(node: object, names: Sequence[str], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Yield the values below these keys, but for the arguments of a user's own classes, whose names are theirs."""
    if isinstance(node, dict) and not str(node.get("_target_", ALLOWED_TARGETS[0])).startswith(ALLOWED_TARGETS):
        return
    if isinstance(node, dict):
        for name, value in node.items():
            if prefix or name in names:
                yield from _leaves(value, names, f"{prefix}.{name}".lstrip("."))
    else:
        yield prefix, node


def _check_count(key: str, value: object) -> None:
    """Hold counts and widths, which names tell, to positive whole numbers."""
    name = key.rpartition(".")[2]
    is_count = (
        name in ("num_beams", "max_new_tokens")
        if key.startswith("decoding.")
        else (name.startswith("num_") or name.endswith(("_dim", "batch_size", "_per_record", "_steps")))
    )
    if is_count and name != "num_workers" and value is not None and not str(value).startswith("${"):
        require(matches_hint(value, int) and value > 0, f"{key}={value}: must be a whole number, more than 0")
