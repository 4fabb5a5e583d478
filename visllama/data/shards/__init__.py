"""Shards: tars of records, their index, and where they lie."""

from __future__ import annotations


def __getattr__(name: str) -> object:
    """Return `ShardSource` when it is asked for (PEP 562): whoever reads a tar needs no source."""
    if name != "ShardSource":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from visllama.data.shards.source import ShardSource

    return ShardSource
