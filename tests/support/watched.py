"""Programs that are started with keys in a home of their own, and watched: what they connect to, and what they leave."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.support.commands import ROOT

CANARIES = {"WANDB_API_KEY": "c0ffee" * 6 + "cafe", "HF_TOKEN": "hf_canarycanarycanarycanarycanary"}
"""Keys that are none: 40 hexadecimal digits, and as long as one of the hub's."""
_SITECUSTOMIZE = """
import os
import socket

_connect, _connect_ex, _getaddrinfo = socket.socket.connect, socket.socket.connect_ex, socket.getaddrinfo
_LOCAL = ("127.0.0.1", "::1", "localhost", "", None)


def _check(what, host):
    if host not in _LOCAL:
        with open(os.environ["WATCHED_CONNECTIONS"], "a") as file:
            file.write(f"{what} {host!r} by {os.getpid()}\\n")
        raise OSError(f"denied: {what} {host}")


def connect(self, address):
    if self.family in (socket.AF_INET, socket.AF_INET6):
        _check("connect", address[0])
    return _connect(self, address)


def connect_ex(self, address):
    if self.family in (socket.AF_INET, socket.AF_INET6):
        _check("connect", address[0])
    return _connect_ex(self, address)


def getaddrinfo(host, *arguments, **keywords):
    _check("look up", host.decode() if isinstance(host, bytes) else host)
    return _getaddrinfo(host, *arguments, **keywords)


socket.socket.connect, socket.socket.connect_ex, socket.getaddrinfo = connect, connect_ex, getaddrinfo
"""
_ADDRESS = re.compile(r'sa_family=AF_INET6?, .*?(?:inet_addr\("([^"]+)"\)|inet_pton\(AF_INET6, "([^"]+)")')


class Watched:
    """A folder in which programs run.

    Every Python process is denied all connections but those to this machine. Where `strace` can be used, the
    connections of all other processes are seen too, as those of wandb's own program.

    Args:
        folder: An empty folder; it holds the home, the folder of temporary files, and the working folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.work = folder / "work"
        self._seen, self._traced = folder / "seen", folder / "traced"
        for name in ("work", "home", "tmp", "site"):
            (folder / name).mkdir()
        (folder / "site" / "sitecustomize.py").write_text(_SITECUSTOMIZE)

    def run(self, *command: str, is_traced: bool = False, **variables: str) -> subprocess.CompletedProcess:
        """Run a verb with the keys in its environment.

        Args:
            command: The verb and its overrides.
            is_traced: Whether `strace` looks at all processes.
            variables: More environment variables.
        """
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB", "HF_", "XDG_"))}
        environment = kept | CANARIES | {
            "HOME": str(self.folder / "home"),
            "TMPDIR": str(self.folder / "tmp"),
            "PYTHONPATH": f"{self.folder / 'site'}{os.pathsep}{ROOT}",
            "WATCHED_CONNECTIONS": str(self._seen),
        }  # fmt: skip
        tracing = ["strace", "-f", "--seccomp-bpf", "-qq", "-e", "trace=connect", "-o", str(self._traced)]
        words = [sys.executable, "-m", "visllama", *command]
        return subprocess.run(
            [*tracing, *words] if is_traced else words,
            capture_output=True,
            text=True,
            cwd=self.work,
            env=environment | variables,
            timeout=600,
        )

    def connections(self) -> list[str]:
        """Return what was connected to, or looked up, that is not this machine."""
        found = self._seen.read_text().splitlines() if self._seen.is_file() else []
        traced = self._traced.read_text(errors="replace") if self._traced.is_file() else ""
        for match in _ADDRESS.finditer(traced):
            address = match[1] or match[2]
            if not address.startswith(("127.", "::1", "::ffff:127.")):
                found.append(f"connect {address}")
        return found

    def places_of_keys(self) -> list[str]:
        """Return each file that holds one of the keys, by its name or in its content."""
        found = []
        for path in self.folder.rglob("*"):
            content = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
            for name, key in CANARIES.items():
                if key.encode() in content or key in path.name:
                    found.append(f"{name} in {path.relative_to(self.folder)}")
        return found


def can_trace() -> bool:
    """Return whether `strace` is here, and may be used."""
    if shutil.which("strace") is None:
        return False
    command = ["strace", "-f", "--seccomp-bpf", "-qq", "-e", "trace=connect", "-o", os.devnull, "true"]
    return subprocess.run(command, capture_output=True, timeout=60).returncode == 0
