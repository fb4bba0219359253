"""How long OpenMP's threads spin before they sleep: one run by itself, and two at once on the same cores.

    python -m benchmarks.waiting ca_entropy --seconds 12

Median milliseconds of an iteration of noveltylab's `update` (CIFAR-10's shape, batch 64) on all cores, for each setting.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time

from noveltylab.nets.cpu.threads import SETTINGS, SHORT

CHOICES = {
    "sleep at once": {"OMP_WAIT_POLICY": "PASSIVE"},
    f"{SHORT} turns": {"GOMP_SPINCOUNT": SHORT},
    "10000 turns": {"GOMP_SPINCOUNT": "10000"},
    "30000 turns": {"GOMP_SPINCOUNT": "30000"},
    "as OpenMP has it": {},
}


def work(method: str, seconds: float) -> None:
    """Prints the median of as many iterations as fit, after two."""
    from benchmarks.iteration import step

    once, times = step("lab", method, "cifar10", False, 0.0), []
    once(), once()
    end = time.time() + seconds
    while time.time() < end:
        start = time.perf_counter()
        once()
        times.append(time.perf_counter() - start)
    print(f"{1000 * statistics.median(times):.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("method", choices=("ocgan", "ca_entropy", "oled", "nda"))
    parser.add_argument("--seconds", type=float, default=12)
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work(arguments.method, arguments.seconds)
        return
    plain = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    command = [
        sys.executable,
        "-m",
        "benchmarks.waiting",
        arguments.method,
        "--seconds",
        str(arguments.seconds),
        "--work",
    ]
    for name, setting in CHOICES.items():
        for count in (1, 2):
            runs = [
                subprocess.Popen(command, env=plain | setting, stdout=subprocess.PIPE, text=True)
                for _ in range(count)
            ]
            outputs = [run.communicate()[0].strip() for run in runs]
            print(f"{name:18} {count} at once: {' and '.join(outputs)} ms", flush=True)


if __name__ == "__main__":
    main()
