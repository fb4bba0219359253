"""The table of docs/speed.md: what one cell took, and what a table takes on two cores, by the kept results.

python -m experiments.times           # prints it
python -m experiments.times --write   # and writes it between the markers of the page
"""

from collections.abc import Iterator
from pathlib import Path
from statistics import median

from experiments.pages import header, row, write_if_asked
from experiments.rule import rows_of_plan
from noveltylab.command.durations import in_words
from noveltylab.sweep.estimate import makespan

PAGE = Path(__file__).parents[1] / "docs" / "speed.md"
#: Cells that run at once, each on a core.
AT_ONCE = 2
CLASSES, SEEDS = 10, 3
#: The methods whose papers are repeated, as their plans name the rows.
PAPERS = ("ocgan", "ca_fixed_scale", "oled", "nda")
#: A plan -> the data set of its runs, what the table calls it, and which rows it shows.
PLANS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "learn/mnist": ("mnist", "MNIST P2", PAPERS),
    "learn/full_schedule": ("mnist", "MNIST P2, full schedule", ("ocgan",)),
    "learn/fmnist": ("fmnist", "Fashion-MNIST P1", PAPERS),
    "learn/cifar10": ("cifar10", "CIFAR-10 P2", PAPERS),
    "learn/baselines": (
        "mnist",
        "MNIST P2",
        ("ae", "vae", "memae", "alocc", "skip_ganomaly", "rotnet", "anogan"),
    ),
    "learn/densities": ("mnist", "MNIST P2", ("dsebm", "pixelcnn", "lsa", "gpnd")),
    "learn/self_supervised": ("mnist", "MNIST P2", ("drocc", "geometric")),
    "classical": (
        "cifar10",
        "CIFAR-10 P2",
        ("knn", "kde", "ocsvm"),
    ),
}


def times_table() -> Iterator[str]:
    """A line for each row of a plan: the median of its kept runs, and what follows for a table."""
    yield from header("experiment", "row", "data", "runs", "one cell", "ten classes", "table")
    for plan, (data, title, names) in PLANS.items():
        runs = rows_of_plan(plan, data)
        for name in names:
            seconds = median(run.result.seconds["total"] for run in runs[name])
            classes = makespan([seconds] * CLASSES, AT_ONCE)
            whole = makespan([seconds] * CLASSES * SEEDS, AT_ONCE)
            words = [in_words(value) for value in (seconds, classes, whole)]
            yield row(f"`{plan}`", f"`{name}`", title, str(len(runs[name])), *words)


#: Marker of the page -> the lines between it and its end.
TABLES = {"times": times_table}


def main() -> None:
    write_if_asked("experiments.times", PAGE, TABLES)
    print("\n".join(times_table()))


if __name__ == "__main__":
    main()
