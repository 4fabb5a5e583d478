"""Bytes on one rank, line by line, and when each is held; the peak is the moment at which most is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from visllama.plan.model import Parameter, Shapes, Transformer

GIB = 2**30
ENCODE, LOSS, BLOCK, CONNECTOR, UPDATE = MOMENTS = (
    "the vision encoder's forward pass",
    "the loss's backward pass",
    "a block's backward pass",
    "the connector's backward pass",
    "the optimizer's step",
)
CONTEXT_GIB, NCCL_GIB, FRAGMENTED = 0.75, 1.0, 0.05
"""What is allowed for beside what is computed: CUDA's context and cuBLAS, NCCL's buffers, the allocator's holes."""
_BLOCKS_AT_ONCE = 3
"""Under FSDP: one computes, the next one is whole, and what it was gathered in is not yet free."""


class Precision(NamedTuple):
    """Bytes a number.

    Attributes:
        frozen: Of frozen weights.
        trained: Of trained weights, their gradients and the optimizer's state.
        compute: Of matrix products.
        mask: Of dropout's mask: CUDA keeps a byte, the CPU a number.
    """

    frozen: int
    trained: int
    compute: int
    mask: int = 1

    @classmethod
    def named(cls, precision: str) -> Precision:
        """Read Lightning's name of one."""
        compute = {"16": 2, "bf16": 2, "32": 4, "64": 8}[precision.partition("-")[0]]
        return cls(compute, 4 if precision.endswith("-mixed") else compute, compute)

    @property
    def is_mixed(self) -> bool:
        return self.compute < self.trained


@dataclass(frozen=True)
class Job:
    """How a model is trained.

    Attributes:
        num_devices: Of each node; a rank each.
        micro_batch_size: Most samples in one forward pass.
        strategy: one, ddp or fsdp.
        recomputes: Whether activations inside blocks are computed again.
        state_bytes: What the optimizer keeps, a number of a trained tensor and a tensor: two of fp32 and 4 for AdamW.
        updates_in_place: Whether the optimizer's step needs no copy of its group.
    """

    num_nodes: int
    num_devices: int
    global_batch_size: int
    micro_batch_size: int
    strategy: str
    precision: Precision
    recomputes: bool
    state_bytes: tuple[float, int]
    updates_in_place: bool

    @property
    def num_ranks(self) -> int:
        return self.num_nodes * self.num_devices

    @property
    def num_shards(self) -> int:
        return self.num_ranks if self.strategy == "fsdp" else 1

    @property
    def num_samples(self) -> int:
        """Samples of a rank in a step; where ranks do not divide the batch, some have one less."""
        return -(-self.global_batch_size // self.num_ranks)

    @property
    def most_at_once(self) -> int:
        return min(self.micro_batch_size, self.num_samples)

    @property
    def num_micro_batches(self) -> int:
        return -(-self.num_samples // self.micro_batch_size)


class Line(NamedTuple):
    """Something that takes memory on each rank."""

    name: str
    num_bytes: int
    formula: str
    moments: tuple[str, ...] = MOMENTS


class Memory(NamedTuple):
    """Memory of a rank."""

    lines: list[Line]

    def at(self, moment: str) -> int:
        return sum(line.num_bytes for line in self.lines if moment in line.moments)

    @property
    def moment(self) -> str:
        return max(MOMENTS, key=self.at)

    @property
    def counted(self) -> int:
        """Bytes of tensors at the worst moment."""
        return self.at(self.moment)

    def allowance(self, num_ranks: int) -> int:
        fixed = CONTEXT_GIB + NCCL_GIB * (num_ranks > 1)
        return round(fixed * GIB + FRAGMENTED * self.counted)


def number(count: float) -> str:
    """Write a count as short as three digits allow: 6.74e9, 12,288, 27."""
    return f"{count:,.0f}" if count < 1e6 else f"{count:.2e}".replace("e+0", "e").replace("e+", "e")


def memory(shapes: Shapes, job: Job, tokens: float) -> Memory:
    """Compute what a rank holds.

    Args:
        shapes: Of the model.
        job: How it is trained.
        tokens: Of each sample in the micro-batch, image span included.
    """
    lines = [*_weights(shapes, job), *_activations(shapes, job, tokens), *_passing(shapes, job)]
    return Memory([line for line in lines if line.num_bytes])


def _weights(shapes: Shapes, job: Job) -> list[Line]:
    own, n = job.precision, job.num_shards
    over = f" / {n}" if n > 1 else ""
    trained = shapes.numel(trained=True, num_shards=n)
    whole = number(shapes.numel(trained=True))

    def frozen(part: str) -> Line:
        count = shapes.numel(part, trained=False)
        held = own.frozen * shapes.numel(part, trained=False, num_shards=n)
        return Line(f"frozen {part.replace('_', ' ')}", held, f"{own.frozen} B x {number(count)}{over}")

    after = (*(MOMENTS[:3] if job.num_micro_batches > 1 else ()), CONNECTOR, UPDATE)
    each, a_tensor = job.state_bytes
    num_tensors = sum(p.is_trained for p in shapes.parameters)
    held = [
        Line("trained weights", own.trained * trained, f"{own.trained} B x {whole}{over}"),
        frozen("language_model"),
        frozen("vision_encoder"),
        Line("optimizer's state", round(each * trained) + a_tensor * num_tensors, f"{each:g} B x {whole}{over}"),
        Line("gradients", own.trained * trained, f"{own.trained} B x {whole}{over}", after),
    ]
    if job.strategy == "ddp" and job.num_ranks > 1:
        held.append(Line("DDP's buckets of gradients", own.trained * trained, f"{own.trained} B x {whole}"))
    if n > 1 and job.num_micro_batches > 1:
        unreduced = own.trained * shapes.numel(trained=True)
        formula = f"{own.trained} B x {whole}, not yet reduced"
        held.append(Line("gradients, whole", unreduced, formula, MOMENTS[:4]))
    if own.is_mixed:
        cast = sum(p.numel() for p in shapes.parameters if p.is_cast)
        formula = f"{own.compute} B x {number(cast)}: autocast's"
        held.append(Line("copies of trained matrices", own.compute * cast, formula, MOMENTS[1:]))
    return held


def _activations(shapes: Shapes, job: Job, tokens: float) -> list[Line]:
    own, samples, layers = job.precision, job.most_at_once, shapes.language
    total, all_samples = samples * tokens, job.num_samples
    positions = f"{samples} x {tokens:,.4g}"
    is_trained = shapes.is_trained("language_model")
    stream = own.trained if is_trained else own.frozen
    block = block_bytes(layers, own, is_trained) + adapter_bytes(shapes, own) / max(1, layers.num_layers)
    last = norm_bytes(layers.width, own, is_trained) + is_trained * own.compute * layers.width
    kept = layers.num_layers * (stream * layers.width if job.recomputes else block)
    of_each = f"{layers.num_layers} x {number(stream * layers.width if job.recomputes else block)} B"
    at_work = layers.ffn_kept * own.compute * layers.ffn_dim + 2 * own.compute * layers.width + job.recomputes * block
    exact, v = max(4, own.compute), shapes.vocabulary
    image = 3 * shapes.size_px**2
    lines = [
        Line("images and ids of a step", round(all_samples * (image + 16 * tokens)), f"{all_samples} x 3 x {shapes.size_px}^2 B"),
        _vision_line(shapes, job),
        Line(
            "connector's activations",
            samples * shapes.connector.kept_bytes[own.is_mixed] * own.compute // (2 if own.is_mixed else 4),
            f"{samples} x {number(shapes.connector.kept_bytes[own.is_mixed])} B, counted",
            (LOSS, BLOCK, CONNECTOR),
        ),
        Line("language model's activations", round(total * (kept + last)), f"{positions} x {of_each}", (LOSS, BLOCK)),
        Line("logits", round(total * own.compute * v), f"{positions} x {own.compute} B x {number(v)}", (LOSS, BLOCK)),
        Line(
            "log-probabilities, gradients",
            round(total * 3 * exact * v),
            f"{positions} x {3 * exact} B x {number(v)}",
            (LOSS,),
        ),
        Line(
            "a block, backward" + ", computed again" * job.recomputes,
            round(total * at_work),
            f"{positions} x {number(at_work)} B",
            (BLOCK,),
        ),
    ]
    return lines


def norm_bytes(width: int, own: Precision, is_trained: bool) -> int:
    """Bytes a token that an RMSNorm keeps: its input and a root in fp32; if its weight trains, what that multiplies."""
    return max(4, own.compute) * (width + 1) + is_trained * own.trained * width


def block_bytes(layers: Transformer, own: Precision, is_trained: bool) -> int:
    """Bytes a token that a block of LLaMA's kind keeps for its backward pass.

    Two norms; queries, keys, values, their result and one fp32 number a head (flash attention); of the gated MLP the
    gate, what the activation makes of it, and what it multiplies. A frozen matrix keeps nothing; one that trains keeps
    its input, which under autocast is a copy for each.
    """
    d, c = layers.width, own.compute
    attention = 2 * c * (layers.query_dim + layers.key_dim) + max(4, c) * layers.num_heads
    kept = 2 * norm_bytes(d, own, is_trained) + attention + layers.ffn_kept * c * layers.ffn_dim
    if is_trained:
        kept += (5 if own.is_mixed else 2) * c * d + c * layers.ffn_dim
    return kept


def adapter_bytes(shapes: Shapes, own: Precision) -> int:
    """Bytes a token that LoRA keeps in all blocks: inputs and their masks, and what the first matrix makes of them."""
    kept, shared = 0, set()
    for adapter in shapes.adapters:
        is_own = own.is_mixed or adapter.has_dropout or adapter.shares_input not in shared
        shared.add(adapter.shares_input)
        kept += own.compute * (is_own * adapter.in_dim + adapter.rank) + adapter.has_dropout * own.mask * adapter.in_dim
    return kept


def _vision_line(shapes: Shapes, job: Job) -> Line:
    """Give what the encoder needs: frozen, the hidden states of one pass; trained, what a backward pass needs."""
    layers, own, samples = shapes.vision, job.precision, job.most_at_once
    c, d, mlp = own.compute, layers.width, layers.ffn_kept * layers.ffn_dim
    if not shapes.is_trained("vision_encoder"):
        each = c * ((layers.num_layers + 3) * d + mlp)
        pixels = (4 + c * (c < 4)) * 3 * shapes.size_px**2
        formula = f"{samples} x ({shapes.num_positions} x {number(each)} B + {number(pixels)} B)"
        return Line("vision encoder at work", samples * (shapes.num_positions * each + pixels), formula, (ENCODE,))
    norms = 2 * (own.trained * d + 8) + (0 if own.is_mixed else 2 * c * d)
    block = norms + (8 if own.is_mixed else 4) * c * d + c * mlp + 4 * layers.num_heads
    formula = f"{samples} x {shapes.num_positions} x {layers.num_layers} x {number(block)} B"
    kept = samples * shapes.num_positions * layers.num_layers * block
    return Line("vision encoder's activations", kept, formula, (ENCODE, LOSS, BLOCK, CONNECTOR))


def _passing(shapes: Shapes, job: Job) -> list[Line]:
    """Give what is there for a moment: gradients under way, whole units of a sharded model, copies in an update."""
    own = job.precision
    trained = [p for p in shapes.parameters if p.is_trained]
    largest = max(p.numel() for p in trained)
    each = own.compute * own.is_mixed + own.trained * (job.num_micro_batches > 1)
    lines = [Line("largest gradient under way", each * largest, f"{each} B x {number(largest)}", (CONNECTOR,))]
    if not job.updates_in_place:
        group = sum(p.numel(job.num_shards) for p in trained)
        formula = f"{own.trained} B x {number(group)}"
        lines.append(Line("copies in the optimizer's step", own.trained * group, formula, (UPDATE,)))
    if job.num_shards > 1:
        lines += _gathered(shapes, own)
    return lines


def _gathered(shapes: Shapes, own: Precision) -> list[Line]:
    def whole(chosen: Callable[[Parameter], bool]) -> int:
        return sum(p.numel() * (own.trained if p.is_trained else own.frozen) for p in shapes.parameters if chosen(p))

    units = {p.unit for p in shapes.parameters} - {"root", "connector"}
    root = whole(lambda p: p.unit == "root")
    block, largest = max((whole(lambda p, unit=unit: p.unit == unit), unit) for unit in sorted(units))
    reduced = 2 * own.trained * sum(p.numel() for p in shapes.parameters if p.is_trained and p.unit == largest)
    connector = whole(lambda p: p.unit == "connector")
    learning = 2 * own.trained * sum(p.numel() for p in shapes.parameters if p.is_trained and p.unit == "connector")
    return [
        Line("FSDP's root, whole", root, f"{number(root)} B: embeddings, head", MOMENTS[:4]),
        Line(
            "FSDP's blocks, whole",
            _BLOCKS_AT_ONCE * block + reduced,
            f"{_BLOCKS_AT_ONCE} x {number(block)} B" + f" + {number(reduced)} B" * bool(reduced),
            MOMENTS[:3],
        ),
        Line(
            "FSDP's connector, whole",
            connector + learning,
            f"{number(connector)} B + 2 gradients",
            (CONNECTOR,),
        ),
    ]
