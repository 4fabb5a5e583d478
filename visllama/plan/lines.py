"""Lines of the table of memory: what takes how much, and at which moments of a step."""

from __future__ import annotations

from typing import NamedTuple

GIB = 2**30

ENCODE = "the vision encoder's forward pass"
LOSS = "the loss's backward pass"
LAST_BLOCK = "the last block's backward pass"
FIRST_BLOCK = "the first block's backward pass"
CONNECTOR = "the connector's backward pass"
UPDATE = "the optimizer's step"
MOMENTS = (ENCODE, LOSS, LAST_BLOCK, FIRST_BLOCK, CONNECTOR, UPDATE)
"""The moments of a step, in their order; the peak of memory may be at any of them."""

CONTEXT_GIB = 0.75
"""Allowance for CUDA's context and cuBLAS."""
NCCL_GIB = 1.0
"""Allowance for NCCL's buffers, where there are several ranks."""
FRAGMENTED = 0.05
"""Allowance for the holes that the allocator leaves, as a share of the tensors."""


class Line(NamedTuple):
    """Something that takes memory on each rank.

    Attributes:
        name: Its name in the table.
        num_bytes: Its size.
        formula: The computation of its size, for the table.
        moments: The moments at which it is held.
    """

    name: str
    num_bytes: int
    formula: str
    moments: tuple[str, ...] = MOMENTS


class Memory(NamedTuple):
    """Memory of a rank.

    Attributes:
        lines: What the rank holds.
        num_ranks: Number of ranks of the job.
    """

    lines: list[Line]
    num_ranks: int

    def at(self, moment: str) -> int:
        """Return the bytes that are held at one of `MOMENTS`."""
        return sum(line.num_bytes for line in self.lines if moment in line.moments)

    @property
    def moment(self) -> str:
        """The moment at which most is held."""
        return max(MOMENTS, key=self.at)

    @property
    def counted(self) -> int:
        """Bytes of tensors at the worst moment."""
        return self.at(self.moment)

    @property
    def allowance(self) -> int:
        """Bytes allowed for beside the tensors."""
        fixed_gib = CONTEXT_GIB + NCCL_GIB if self.num_ranks > 1 else CONTEXT_GIB
        return round(fixed_gib * GIB + FRAGMENTED * self.counted)

    @property
    def peak(self) -> int:
        """Bytes that the card has to have."""
        return self.counted + self.allowance
