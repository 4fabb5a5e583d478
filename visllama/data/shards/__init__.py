"""Shards: tars of records, their index, and where they lie."""
