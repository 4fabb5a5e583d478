"""A plan: all that is computed of a job, as one value."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from visllama.config.schema import PlanConfig
from visllama.data.source import count_items
from visllama.data.sources import build_sources, source_class
from visllama.errors import ConfigError
from visllama.machine.cards import CARDS
from visllama.model.flops import Flops, flops
from visllama.model.shapes import Shapes
from visllama.plan.fit import find_switches
from visllama.plan.job import Job, job_of, strategy_of
from visllama.plan.lines import GIB, Memory
from visllama.plan.memory import memory
from visllama.plan.speed import Rates, StepTime, step_time
from visllama.text.tokens import sample_length
from visllama.training.assembly import count_steps

FEW_TOKENS = 1000
"""A step of fewer a GPU waits for weights, launches and the network rather than for arithmetic."""
_CAPTION_TOKENS, _TURN_TOKENS = 14, 64
_NODES = (1, 2, 4, 8)


@dataclass(frozen=True)
class Plan:
    """What a job costs.

    Attributes:
        tokens, longest_tokens: Of a sample on average, and at most.
        longest: Memory where a micro-batch is padded to the longest sample that there can be.
        mean: Memory where it is padded to samples of mean length.
        flops: Of a sample of mean length.
        step: Its time as configured.
        by_nodes: The same on several numbers of nodes, and the peak there.
        num_samples: Of an epoch; None is unknown.
        num_steps: Of the run; None is unknown.
        switches: Overrides that make it fit; None where it fits already, or nothing does.
        assumed: What was taken for granted.
        warnings: What is wrong with it, beside its memory.
    """

    job: Job
    gpu: str
    rates: Rates
    tokens: float
    longest_tokens: int
    longest: Memory
    mean: Memory
    flops: list[Flops]
    step: StepTime
    by_nodes: list[tuple[StepTime, int]]
    num_samples: int | None
    num_steps: int | None
    switches: list[str] | None
    assumed: list[str]
    warnings: list[str]

    @property
    def card_bytes(self) -> float:
        return self.rates.card.memory_gib * GIB

    @property
    def fits(self) -> bool:
        return self.longest.peak <= self.card_bytes

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as JSON takes it."""

        def told(step: StepTime) -> dict[str, Any]:
            own = {name: value for name, value in step._asdict().items() if name != "job"}
            sizes = {"num_nodes": step.job.num_nodes, "num_ranks": step.job.num_ranks}
            return sizes | own | {"step_s": step.seconds, "samples_per_second": step.samples_per_second}

        total = None if self.num_steps is None else self.num_steps * self.step.seconds
        return {
            "fits": self.fits,
            "switches": self.switches,
            "peak_bytes": self.longest.peak,
            "peak_bytes_mean": self.mean.peak,
            "card_bytes": round(self.card_bytes),
            "moment": self.longest.moment,
            "gpu": self.gpu,
            "job": asdict(self.job) | {"precision": self.job.precision._asdict(), "num_ranks": self.job.num_ranks},
            "tokens": self.tokens,
            "longest_tokens": self.longest_tokens,
            "tokens_per_gpu": self.tokens * self.job.num_samples,
            "memory": [line._asdict() for line in self.longest.lines],
            "memory_mean": [line._asdict() for line in self.mean.lines],
            "flops_per_sample": {part.name: part.count for part in self.flops},
            "step": told(self.step),
            "by_nodes": [told(step) | {"peak_bytes": held} for step, held in self.by_nodes],
            "num_samples": self.num_samples,
            "num_steps": self.num_steps,
            "total_s": total,
            "gpu_hours": None if total is None else total * self.job.num_ranks / 3600,
            "assumed": self.assumed,
            "warnings": self.warnings,
        }


def make_plan(config: PlanConfig, shapes: Shapes) -> Plan:
    """Compute a plan.

    Args:
        config: The checked configuration.
        shapes: Of its model.
    """
    job, assumed = job_of(config)
    card = CARDS[config.gpu]
    rates = Rates(card, config.utilisation, config.network_gb_s)
    text, said = text_tokens(config)
    span = sample_length(1, shapes.num_image_tokens, 0)
    tokens, longest_tokens = span + text, span + config.stage.max_text_tokens
    if shapes.vision.num_layers == 0:
        said = [*said, "of model.vision_encoder nothing but its weights is counted: its class is your own"]
    num_samples, unknown = samples_of(config)
    budgeted = config.trainer.max_steps or config.stage.num_samples
    num_steps = count_steps(config, num_samples or 0) if budgeted or num_samples else None
    longest, mean = (memory(shapes, job, t) for t in (longest_tokens, tokens))
    others = [replace(job, num_nodes=n, num_devices=d, strategy=strategy_of(config, n * d)) for n, d in _ranks(job)]
    by_nodes = [(step_time(shapes, o, tokens, rates), memory(shapes, o, longest_tokens).peak) for o in others]
    fits = longest.peak <= card.memory_gib * GIB
    found = Plan(
        job=job,
        gpu=config.gpu,
        rates=rates,
        tokens=tokens,
        longest_tokens=longest_tokens,
        longest=longest,
        mean=mean,
        flops=flops(shapes, tokens, job.recomputes),
        step=step_time(shapes, job, tokens, rates),
        by_nodes=by_nodes,
        num_samples=num_samples,
        num_steps=num_steps,
        switches=None if fits else find_switches(shapes, job, longest_tokens, card),
        assumed=[*assumed, *said, *unknown],
        warnings=[],
    )
    found.warnings.extend(warnings_of(found, config))
    return found


def text_tokens(config: PlanConfig) -> tuple[float, list[str]]:
    """Return a text's mean tokens: as configured, or as captions, or questions in a template, usually are."""
    if config.text_tokens is not None:
        return config.text_tokens, []
    usual = min(_CAPTION_TOKENS if config.stage.template == "plain" else _TURN_TOKENS, config.stage.max_text_tokens)
    return usual, [f"text_tokens is taken as {usual} (visllama inspect shows yours)"]


def samples_of(config: PlanConfig) -> tuple[int | None, list[str]]:
    """Return the training samples of an epoch; None, and why, where the data is not here.

    Raises:
        ConfigError: If a source could not be made anywhere.
    """
    for name, node in config.data.sources.items():
        source_class(f"data.sources.{name}", node, config.plugins)
    if config.samples is not None:
        return config.samples, []
    try:
        sources = build_sources(config.data.sources, "train", config.plugins)
        return sum(map(count_items, sources.values())), []
    except ConfigError as error:
        key = str(error).partition(":")[0]
        return None, [f"how many samples an epoch has is unknown ({key} cannot be read here): give samples=N"]


def _ranks(job: Job) -> list[tuple[int, int]]:
    if job.num_ranks == 1:
        return [(1, devices) for devices in _NODES]
    return [(nodes, job.num_devices) for nodes in sorted({*_NODES, job.num_nodes})]


def warnings_of(found: Plan, config: PlanConfig) -> list[str]:
    """Return what is wrong beside the memory."""
    job, said = found.job, []
    tokens = job.num_samples * found.tokens
    if tokens < FEW_TOKENS:
        said.append(
            f"A step holds {tokens:,.0f} tokens a GPU, under {FEW_TOKENS:,}: it waits for weights and the network, not "
            f"for arithmetic. Raise stage.global_batch_size={job.global_batch_size}, or take fewer GPUs."
        )
    wasted = 1 - job.global_batch_size / (job.num_samples * job.num_ranks)
    if wasted:
        said.append(
            f"{job.num_ranks} ranks do not divide stage.global_batch_size={job.global_batch_size}: {wasted:.1%} of a "
            f"step is wasted."
        )
    if not found.fits and found.mean.peak <= found.card_bytes:
        said.append(
            f"Samples of mean length would fit; a single text of stage.max_text_tokens={config.stage.max_text_tokens} "
            f"pads its micro-batch to {found.longest_tokens} tokens. Lower it where texts are shorter."
        )
    return said
