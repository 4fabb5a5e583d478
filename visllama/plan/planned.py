"""`Plan`: everything that is computed about a training job before it runs, as one value."""

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
"""Number of tokens of a GPU in one step, below which a plan warns: such a step waits for weights, launches and the
network rather than for arithmetic."""
_CAPTION_TOKENS = 14
"""Usual tokens of a caption."""
_TURN_TOKENS = 64
"""Usual tokens of a question and its answer in a template."""
_NODES = (1, 2, 4, 8)
"""Numbers of nodes that times are shown for."""


@dataclass(frozen=True)
class Plan:
    """What a training job costs on each GPU (*card*): memory, arithmetic and time. `make_plan` makes it.

    Attributes:
        job: How the model is trained.
        gpu: Name of the card, a key of `CARDS`.
        rates: The card, and speeds that are assumed.
        tokens: Mean length of a sample in tokens, the vectors of its one image included.
        longest_tokens: Length in tokens of the longest sample that `stage.max_text_tokens` allows, the vectors of its
            one image included.
        longest: Memory of a rank if all samples of a micro-batch are of `longest_tokens`.
        mean: Memory of a rank if all samples of a micro-batch are of mean length.
        flops: Floating-point operations of a sample of mean length, by part.
        step: Time of a step on the ranks of `job`.
        by_nodes: Time of a step and peak of a rank's memory in bytes, one pair for each of several numbers of ranks.
        num_samples: Number of samples in an epoch; None if it is unknown.
        num_steps: Number of optimizer steps of the run; None if it is unknown.
        switches: Overrides of `train`, as "micro_batch_size=4", with which the job would fit the card; None if it fits
            already, or if no override makes it fit.
        assumed: One sentence for each value that the config leaves open and that was assumed.
        warnings: One sentence for each thing to be mended, other than that the job does not fit.
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
        """The card's memory in bytes."""
        return self.rates.card.memory_gib * GIB

    @property
    def fits(self) -> bool:
        """Whether the job fits the card even if a micro-batch holds the longest samples that are allowed."""
        return self.longest.peak <= self.card_bytes

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as a dict of values that JSON can hold.

        The keys are the attributes without `rates` (`longest` and `mean` become the lists `memory` and `memory_mean`,
        `flops` becomes `flops_per_sample`), and values that are computed from them: `fits`, `peak_bytes`,
        `peak_bytes_mean`, `card_bytes`, `moment` (the point of a step at which the peak is), `tokens_per_gpu` (in a
        step), and the whole run's `total_s` (seconds) and `gpu_hours`, both None if the number of steps is unknown.
        """
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
    """Return a step's time as values that JSON can hold; of its job, only the numbers of nodes and ranks are kept."""
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
    """Compute memory, arithmetic and time of the job that a config describes, without running it.

    The training data is opened to count the samples of an epoch, unless `config.samples` names their number. If the
    data is not on this machine, nothing is raised: what depends on the number is left out of the plan, which says so.

    Args:
        config: The configuration of `visllama plan`, whose values have been checked.
        shapes: Sizes of the config's model, as `read_shapes` returns them.

    Raises:
        ConfigError: If a data source is configured in a way that works on no machine, if the run would have no whole
            batch, or if the optimizer cannot take a step.
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
    """Return the mean number of tokens of a sample's text, without its image.

    It is `config.text_tokens`; if that is None, 14 (a caption) for the template "plain" and 64 (a question and its
    answer) for others, and `stage.max_text_tokens` at most.

    Returns:
        The number, and a list of one sentence if the number was assumed, else an empty list.
    """
    if config.text_tokens is not None:
        return config.text_tokens, []

    usual = _CAPTION_TOKENS if config.stage.template == "plain" else _TURN_TOKENS
    usual = min(usual, config.stage.max_text_tokens)
    return usual, [f"text_tokens is taken as {usual} (visllama inspect shows yours)"]


def samples_of(config: PlanConfig) -> tuple[int | None, list[str]]:
    """Return the number of training samples in an epoch.

    It is `config.samples`; if that is None, the sources of the split "train" are opened and their items counted.

    Returns:
        The number and an empty list; or, if a source cannot be read on this machine, None and a list of one sentence
        that says so.

    Raises:
        ConfigError: If a source's class or its arguments are wrong, whatever the machine.
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
    """Return pairs of a number of nodes and a number of devices in each, for which times are shown.

    They are 1, 2, 4 and 8 devices in one node if the job has one rank; else 1, 2, 4 and 8 nodes, and the job's own
    number, of its devices.
    """
    # A job of one rank grows inside its node first.
    if job.num_ranks == 1:
        return [(1, devices) for devices in _NODES]
    return [(nodes, job.num_devices) for nodes in sorted({*_NODES, job.num_nodes})]


def warnings_of(plan: Plan, config: PlanConfig) -> list[str]:
    """Return one sentence for each thing in a plan that the user may want to change, as a list; it may be empty.

    Checked are: fewer than `FEW_TOKENS` tokens a GPU, ranks that do not divide the batch, and a job that fits with
    samples of mean length and not with the longest ones.

    Args:
        plan: The plan; it is not changed.
        config: The configuration that the plan was made of.
    """
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
