"""A small disk that fills up for real: a tmpfs, mounted in a name space of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run_on_small_disk(script: str, disk: Path, size: str, *arguments: str) -> subprocess.CompletedProcess:
    """Run a Python script, in the repository, while `disk` is a tmpfs of that size; what lies there goes with it."""
    disk.mkdir(parents=True, exist_ok=True)
    mounted = f'mount -t tmpfs -o size={size} none "$0" && exec "$@"'
    command = ["unshare", "-rm", "sh", "-c", mounted, str(disk), sys.executable, "-c", script, *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, capture_output=True, text=True, timeout=500, cwd=ROOT, env=environment)
    if ended.stderr.startswith(("unshare", "mount")):
        pytest.skip(f"no tmpfs can be mounted here: {ended.stderr.strip()}")
    return ended
