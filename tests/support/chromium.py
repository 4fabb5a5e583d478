"""What a browser makes of a page: headless Chromium, where this machine has one."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")


def screenshot(page: Path, picture: Path) -> None:
    """Write what a browser shows of a page."""
    _run(page, "--window-size=1200,1600", f"--screenshot={picture}")


def page_text(page: Path) -> str:
    """Return a page's HTML after its scripts have run."""
    return _run(page, "--virtual-time-budget=2000", "--dump-dom")


def _run(page: Path, *options: str) -> str:
    with tempfile.TemporaryDirectory() as profile:
        command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}", *options]
        ended = subprocess.run([*command, f"file://{page}"], check=True, capture_output=True, text=True, timeout=120)
    return ended.stdout
