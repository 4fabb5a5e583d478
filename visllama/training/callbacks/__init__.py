"""Callbacks: they watch, log, save and stop a run."""
