"""What takes memory on a rank, how much, and at which *moments* (points of a training step) it is held."""

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
    """One row of the table of memory: something that a rank holds.

    Attributes:
        name: Name in the table, as "trained weights".
        num_bytes: Size in bytes.
        formula: The computation of `num_bytes` as text, for the table.
        moments: The moments of a step at which it is held, out of `MOMENTS`; all of them if not given.
    """

    name: str
    num_bytes: int
    formula: str
    moments: tuple[str, ...] = MOMENTS


class Memory(NamedTuple):
    """The memory of one rank, from which its peak is computed.

    Attributes:
        lines: All that the rank holds, and when.
        num_ranks: Number of ranks of the job.
    """

    lines: list[Line]
    num_ranks: int

    def at(self, moment: str) -> int:
        """Return the bytes in use at a moment of a step: the sum over the entries of `lines` that are held then.

        Args:
            moment: One of `MOMENTS`; any other name gives 0.
        """
        return sum(line.num_bytes for line in self.lines if moment in line.moments)

    @property
    def moment(self) -> str:
        """The one of `MOMENTS` at which most bytes are held; the first of them if several are equal."""
        return max(MOMENTS, key=self.at)

    @property
    def counted(self) -> int:
        """Bytes of all tensors at the moment at which most are held, without the allowance."""
        return self.at(self.moment)

    @property
    def allowance(self) -> int:
        """Bytes added to the tensors for CUDA, for NCCL if there are several ranks, and for the allocator's holes."""
        fixed_gib = CONTEXT_GIB + NCCL_GIB if self.num_ranks > 1 else CONTEXT_GIB
        return round(fixed_gib * GIB + FRAGMENTED * self.counted)

    @property
    def peak(self) -> int:
        """Bytes that the GPU has to have: tensors at the worst moment, and the allowance."""
        return self.counted + self.allowance
