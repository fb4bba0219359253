"""How OpenMP's threads wait for each other on a CPU.

Torch's threads meet after every operation. GNU's OpenMP lets a waiting one spin for milliseconds
before it sleeps, which is fastest on a machine with nothing else to do, and many times slower where
another process wants the same cores (docs/notes/benchmarks.md has both). Imports no torch: OpenMP reads
its settings once, when torch is loaded.
"""

import os
import time
from pathlib import Path

#: Names under which a user settles it; then nothing is done here.
SETTINGS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
#: Turns of the waiting loop beside other work: enough for two operations in a row, some
#: microseconds.
SHORT = "1000"
SECONDS, IDLE = 0.1, 0.75


def settle_waiting(share: int | None) -> None:
    """Before torch is loaded: spins shortly where others use the machine.

    Else leaves OpenMP's default.

    Args:
        share: The run's cores if it has a share of the machine, so that others run beside it; None
            for all.
    """
    if any(name in os.environ for name in SETTINGS) or os.environ.get("OMP_NUM_THREADS") == "1":
        return
    if share is not None or not idle():
        os.environ["GOMP_SPINCOUNT"] = SHORT


def idle(stat: Path = Path("/proc/stat")) -> bool:
    """Whether nothing uses the cores of this process for a moment.

    True where the system does not say.
    """
    before = _times(stat)
    time.sleep(SECONDS)
    for core, (waited, total) in _times(stat).items():
        first = before.get(core, (0, 0))
        if waited - first[0] < IDLE * (total - first[1]):
            return False
    return True


def _times(stat: Path) -> dict[str, tuple[int, int]]:
    """Core of this process -> ticks spent idle and in all; empty off Linux."""
    if not stat.is_file():
        return {}
    mine = {f"cpu{core}" for core in os.sched_getaffinity(0)}
    lines = (line.split() for line in stat.read_text().splitlines())
    return {
        name: (int(ticks[3]) + int(ticks[4]), sum(map(int, ticks[:8])))
        for name, *ticks in lines
        if name in mine
    }
