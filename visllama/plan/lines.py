"""What takes memory, and when: lines of a table, which add up at each moment of a step."""

from __future__ import annotations

from typing import NamedTuple

GIB = 2**30
ENCODE, LOSS, LAST_BLOCK, FIRST_BLOCK, CONNECTOR, UPDATE = MOMENTS = (
    "the vision encoder's forward pass",
    "the loss's backward pass",
    "the last block's backward pass",
    "the first block's backward pass",
    "the connector's backward pass",
    "the optimizer's step",
)
"""Of a step, in their order: any of them may be when most is held."""
CONTEXT_GIB, NCCL_GIB, FRAGMENTED = 0.75, 1.0, 0.05
"""What is allowed for beside what is computed: CUDA's context and cuBLAS, NCCL's buffers, the allocator's holes."""


class Line(NamedTuple):
    """Something that takes memory on each rank."""

    name: str
    num_bytes: int
    formula: str
    moments: tuple[str, ...] = MOMENTS


class Memory(NamedTuple):
    """Memory of a rank.

    Attributes:
        lines: What it holds.
        num_ranks: How many there are.
    """

    lines: list[Line]
    num_ranks: int

    def at(self, moment: str) -> int:
        """Return the bytes that are held at one of `MOMENTS`."""
        return sum(line.num_bytes for line in self.lines if moment in line.moments)

    @property
    def moment(self) -> str:
        """When most is held."""
        return max(MOMENTS, key=self.at)

    @property
    def counted(self) -> int:
        """Bytes of tensors at the worst moment."""
        return self.at(self.moment)

    @property
    def allowance(self) -> int:
        fixed = CONTEXT_GIB + NCCL_GIB * (self.num_ranks > 1)
        return round(fixed * GIB + FRAGMENTED * self.counted)

    @property
    def peak(self) -> int:
        """Bytes that the card has to have."""
        return self.counted + self.allowance
