"""A plan: everything that is computed about a job, as one value."""

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
"""Tokens a GPU; a step with fewer waits for weights, launches and the network rather than for arithmetic."""
_CAPTION_TOKENS = 14
"""Usual tokens of a caption."""
_TURN_TOKENS = 64
"""Usual tokens of a question and its answer in a template."""
_NODES = (1, 2, 4, 8)
"""Numbers of nodes that times are shown for."""


@dataclass(frozen=True)
class Plan:
    """What a job costs.

    Attributes:
        job: How the model is trained.
        gpu: Name of the card.
        rates: Speeds that are assumed of the machines.
        tokens: Tokens of a sample on average, image span included.
        longest_tokens: Tokens of the longest sample that there can be, image span included.
        longest: Memory where a micro-batch is padded to the longest sample that there can be.
        mean: Memory where a micro-batch is padded to samples of mean length.
        flops: Arithmetic of a sample of mean length, by part.
        step: Time of a step as configured.
        by_nodes: Time of a step and peak of memory in bytes, on several numbers of nodes.
        num_samples: Samples of an epoch; None where it is unknown.
        num_steps: Steps of the run; None where it is unknown.
        switches: Overrides with which the job fits; None where it fits already, or with none.
        assumed: One sentence for each value that was assumed.
        warnings: One sentence for each thing that is wrong besides the memory.
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
        """Bytes of the card's memory."""
        return self.rates.card.memory_gib * GIB

    @property
    def fits(self) -> bool:
        """Whether the job fits the card, however long its texts are."""
        return self.longest.peak <= self.card_bytes

    def to_dict(self) -> dict[str, Any]:
        """Return the whole plan as values that JSON can hold."""
        job: dict[str, Any] = asdict(self.job)
        job["precision"] = self.job.precision._asdict()
        job["num_ranks"] = self.job.num_ranks

        by_nodes = []
        for step, peak_bytes in self.by_nodes:
            by_nodes.append({**_step_to_dict(step), "peak_bytes": peak_bytes})

        total_s = None
        gpu_hours = None
        if self.num_steps is not None:
            total_s = self.num_steps * self.step.seconds
            gpu_hours = total_s * self.job.num_ranks / 3600

        return {
            "fits": self.fits,
            "switches": self.switches,
            "peak_bytes": self.longest.peak,
            "peak_bytes_mean": self.mean.peak,
            "card_bytes": round(self.card_bytes),
            "moment": self.longest.moment,
            "gpu": self.gpu,
            "job": job,
            "tokens": self.tokens,
            "longest_tokens": self.longest_tokens,
            "tokens_per_gpu": self.tokens * self.job.num_samples,
            "memory": [line._asdict() for line in self.longest.lines],
            "memory_mean": [line._asdict() for line in self.mean.lines],
            "flops_per_sample": {part.name: part.count for part in self.flops},
            "step": _step_to_dict(self.step),
            "by_nodes": by_nodes,
            "num_samples": self.num_samples,
            "num_steps": self.num_steps,
            "total_s": total_s,
            "gpu_hours": gpu_hours,
            "assumed": self.assumed,
            "warnings": self.warnings,
        }


def _step_to_dict(step: StepTime) -> dict[str, Any]:
    """Return a step's time as JSON can hold it, with the sizes of its job in place of the whole job."""
    values = step._asdict()
    job = values.pop("job")
    return {
        "num_nodes": job.num_nodes,
        "num_ranks": job.num_ranks,
        **values,
        "step_s": step.seconds,
        "samples_per_second": step.samples_per_second,
    }


def make_plan(config: PlanConfig, shapes: Shapes) -> Plan:
    """Return the plan of a job.

    Args:
        config: The checked configuration.
        shapes: Sizes of its model.
    """
    job, assumed = job_of(config)
    card = CARDS[config.gpu]
    rates = Rates(card, config.utilisation, config.network_gb_s)

    num_text_tokens, assumed_text = text_tokens(config)
    assumed.extend(assumed_text)
    image_span = sample_length(1, shapes.num_image_tokens, 0)
    tokens = image_span + num_text_tokens
    longest_tokens = image_span + config.stage.max_text_tokens

    if shapes.vision.num_layers == 0:
        assumed.append("of model.vision_encoder nothing but its weights is counted: its class is your own")

    num_samples, unknown_samples = samples_of(config)
    assumed.extend(unknown_samples)

    # The length of a run is known by its budget, or by its epochs where the data is here.
    num_steps = None
    if config.trainer.max_steps or config.stage.num_samples or num_samples:
        num_steps = count_steps(config, num_samples or 0)

    by_nodes = []
    for num_nodes, num_devices in _ranks(job):
        strategy = strategy_of(config, num_nodes * num_devices)
        other = replace(job, num_nodes=num_nodes, num_devices=num_devices, strategy=strategy)
        step = step_time(shapes, other, tokens, rates)
        by_nodes.append((step, memory(shapes, other, longest_tokens).peak))

    longest = memory(shapes, job, longest_tokens)
    fits = longest.peak <= card.memory_gib * GIB
    plan = Plan(
        job=job,
        gpu=config.gpu,
        rates=rates,
        tokens=tokens,
        longest_tokens=longest_tokens,
        longest=longest,
        mean=memory(shapes, job, tokens),
        flops=flops(shapes, tokens, job.recomputes),
        step=step_time(shapes, job, tokens, rates),
        by_nodes=by_nodes,
        num_samples=num_samples,
        num_steps=num_steps,
        switches=None if fits else find_switches(shapes, job, longest_tokens, card),
        assumed=assumed,
        warnings=[],
    )

    # Warnings are made of what the plan says, so they come last.
    plan.warnings.extend(warnings_of(plan, config))
    return plan


def text_tokens(config: PlanConfig) -> tuple[float, list[str]]:
    """Return the mean number of tokens of a text, and a sentence where it was assumed.

    Without `text_tokens` it is the usual length of a caption, or of a question and its answer in a template.
    """
    if config.text_tokens is not None:
        return config.text_tokens, []

    usual = _CAPTION_TOKENS if config.stage.template == "plain" else _TURN_TOKENS
    usual = min(usual, config.stage.max_text_tokens)
    return usual, [f"text_tokens is taken as {usual} (visllama inspect shows yours)"]


def samples_of(config: PlanConfig) -> tuple[int | None, list[str]]:
    """Return the number of training samples of an epoch; where the data is not here, None and a sentence why.

    Raises:
        ConfigError: If a source is configured in a way that works on no machine.
    """
    # The classes and arguments of sources are checked even if nothing is read.
    for name, node in config.data.sources.items():
        source_class(f"data.sources.{name}", node, config.plugins)
    if config.samples is not None:
        return config.samples, []

    try:
        sources = build_sources(config.data.sources, "train", config.plugins)
        num_samples = sum(count_items(source) for source in sources.values())
        return num_samples, []
    except ConfigError as error:
        # The message begins with the key of the source, and that is what the user can look up.
        key = str(error).partition(":")[0]
        return None, [f"how many samples an epoch has is unknown ({key} cannot be read here): give samples=N"]


def _ranks(job: Job) -> list[tuple[int, int]]:
    """Return the numbers of nodes and of devices a node that times are shown for, with those of the job."""
    # A job of one rank grows inside its node first.
    if job.num_ranks == 1:
        return [(1, devices) for devices in _NODES]
    return [(nodes, job.num_devices) for nodes in sorted({*_NODES, job.num_nodes})]


def warnings_of(plan: Plan, config: PlanConfig) -> list[str]:
    """Return one sentence for each thing that is wrong besides the memory, with what to do."""
    job = plan.job
    warnings = []

    tokens = job.num_samples * plan.tokens
    if tokens < FEW_TOKENS:
        warnings.append(
            f"A step holds {tokens:,.0f} tokens a GPU, under {FEW_TOKENS:,}: it waits for weights and the network, not "
            f"for arithmetic. Raise stage.global_batch_size={job.global_batch_size}, or take fewer GPUs."
        )

    # Ranks with a sample less wait for the others.
    wasted = 1 - job.global_batch_size / (job.num_samples * job.num_ranks)
    if wasted:
        warnings.append(
            f"{job.num_ranks} ranks do not divide stage.global_batch_size={job.global_batch_size}: {wasted:.1%} of a "
            f"step is wasted."
        )

    if not plan.fits and plan.mean.peak <= plan.card_bytes:
        warnings.append(
            f"Samples of mean length would fit; a single text of stage.max_text_tokens={config.stage.max_text_tokens} "
            f"pads its micro-batch to {plan.longest_tokens} tokens. Lower it where texts are shorter."
        )
    return warnings
