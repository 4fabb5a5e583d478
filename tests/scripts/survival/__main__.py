"""Runs that are killed, told to leave, or left alone for long: what is promised of them, shown with real processes.

python -m tests.scripts.survival kill [--stage finetune] [--ranks 2]   kill -9 at random moments, then resume=RUN, to the end
python -m tests.scripts.survival term                                  SIGTERM and SIGUSR1 to a rank, to all, to who started them
python -m tests.scripts.survival soak                                  2,000 steps with a kill every 200; memory, open files

Each prints a table, leaves logs and result.json in its folder, and ends with 1 if a promise is broken.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.scripts.survival.kill import kill
from tests.scripts.survival.soak import soak
from tests.scripts.survival.term import term


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("kill", "term", "soak"))
    parser.add_argument("--stage", choices=("pretrain", "finetune"), default="pretrain", help="of kill")
    parser.add_argument("--ranks", type=int, default=1, help="of kill")
    parser.add_argument("--moments", type=int, default=20, help="of kill and term")
    parser.add_argument("--steps", type=int, help="of each run")
    parser.add_argument("--kill-every", type=int, default=200, help="of soak")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="a folder for logs and runs; else one is made")
    given = parser.parse_args()
    out = given.out or Path(tempfile.mkdtemp(prefix=f"survival-{given.what}-"))
    print(f"runs and logs: {out}", flush=True)
    more = {"steps": given.steps} if given.steps else {}
    if given.what == "kill":
        report = kill(out, given.stage, given.moments, given.seed, given.ranks, **more)
    elif given.what == "term":
        report = term(out, given.moments, given.seed, **more)
    else:
        report = soak(out, kill_every=given.kill_every, seed=given.seed, **more)
    return report.show()


if __name__ == "__main__":
    sys.exit(main())
