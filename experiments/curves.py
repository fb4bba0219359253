"""What the length of a training changes: AUROC and inlier loss against epochs, from kept runs.

python -m experiments.curves           # prints the table
python -m experiments.curves --write   # and writes it into docs/results.md, and draws docs/figures/epochs.png

Read are the runs of STUDIES that logged the AUROC of the test images after every epoch (select=oracle), which chose nothing.

The rule: more training helps if the last epoch is more than 0.01 above the epoch at a third of the training, harms if it is as
much below, else it changes nothing. The choice by held-out inliers is good if its epoch is within 0.01 of the best one.
"""

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.keep import archive
from experiments.pages import header, row, write_if_asked
from experiments.rule import auroc, cells, compared
from noveltylab.report.collect import Run, collect
from noveltylab.results.archive import read_kept_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PAGE = Path(__file__).parents[1] / "docs" / "results.md"
FIGURE = PAGE.parent / "figures" / "epochs.png"
#: Longest first: a class that an earlier study has is not taken from a later one.
STUDIES = ("learn/full_schedule", "learn/mnist")
#: The methods of the four papers and their names.
METHODS = {
    "ocgan": "OCGAN",
    "ca_entropy": "CA-Entropy",
    "oled": "OLED",
    "nda": "NDA",
}
#: Data set, plan and row at full length, plan and row of the same method at a shorter one.
LENGTHS = (
    ("MNIST P2", "full_schedule", "ocgan", "mnist", "ocgan"),
    ("Fashion-MNIST P1", "full_schedule_fmnist", "ocgan", "fmnist", "ocgan"),
    ("MNIST P2", "full_schedule", "ca_entropy", "mnist", "ca_fixed_scale"),
    ("CIFAR-10 P2", "full_schedule_cifar10", "ca_entropy", "cifar10", "ca_fixed_scale"),
)
#: Differences in AUROC that say nothing.
TOLERANCE = 0.01


@dataclass(frozen=True)
class Curve:
    """One run after each of its epochs.

    Attributes:
        study: Of which it is.
        method: The row of the study.
        inlier: Name of the inlier class.
        aurocs: Of the test images, after each epoch.
        losses: Of held-out inliers, after each epoch.
        chosen: The epoch that held-out inliers chose, from 1 on.
    """

    study: str
    method: str
    inlier: str
    aurocs: tuple[float, ...]
    losses: tuple[float, ...]
    chosen: int

    @property
    def epochs(self) -> int:
        return len(self.aurocs)

    @property
    def third(self) -> int:
        """The epoch at a third of the training, from 1 on."""
        return max(1, round(self.epochs / 3))

    @property
    def best(self) -> int:
        """The epoch with the highest AUROC, from 1 on."""
        return 1 + max(range(self.epochs), key=self.aurocs.__getitem__)

    def at(self, epoch: int) -> float:
        """AUROC after an epoch, from 1 on."""
        return self.aurocs[epoch - 1]

    @property
    def effect(self) -> str:
        """What the last two thirds of the training did: "helps", "harms" or "no difference"."""
        gain = self.at(self.epochs) - self.at(self.third)
        if abs(gain) <= TOLERANCE:
            return "no difference"
        return "helps" if gain > 0 else "harms"

    @property
    def cost(self) -> float:
        """How much the chosen epoch is below the best one."""
        return self.at(self.best) - self.at(self.chosen)


def read_curve(run: Run, study: str) -> Curve | None:
    """The curve of a kept run; None if it did not log AUROCs."""
    result = run.result
    try:
        text = read_kept_file(run.folder, "metrics.csv").decode()
    except FileNotFoundError:
        return None
    columns: dict[str, list[float]] = {}
    for line in csv.DictReader(io.StringIO(text)):
        columns.setdefault(line["name"], []).append(float(line["value"]))
    aurocs = columns.get(f"val/oracle-{result.primary}")
    if not aurocs:
        return None
    return Curve(
        study=study,
        method=result.method,
        inlier=result.inlier_name,
        aurocs=tuple(aurocs),
        losses=tuple(columns["val/loss"]),
        chosen=result.selected.epoch,
    )


def read_curves() -> dict[str, list[Curve]]:
    """Method -> its curves, a class once."""
    curves: dict[str, dict[str, Curve]] = {method: {} for method in METHODS}
    for study in STUDIES:
        if not archive(study).is_file():
            continue
        for run in collect(archive(study)).runs:
            curve = read_curve(run, study) if run.result.method in METHODS else None
            if curve is not None:
                curves[curve.method].setdefault(curve.inlier, curve)
    ordered: dict[str, list[Curve]] = {}
    for method, by_class in curves.items():
        ordered[method] = [by_class[inlier] for inlier in sorted(by_class)]
    return ordered


def curve_table() -> Iterator[str]:
    """A line for each curve."""
    yield from header(
        "method",
        "digit",
        "epochs",
        "AUROC at a third",
        "last",
        "best, epoch",
        "chosen, epoch",
        "inlier loss at a third, last",
        "more training",
    )
    for method, curves in read_curves().items():
        for curve in curves:
            yield row(
                METHODS[method],
                curve.inlier,
                str(curve.epochs),
                f"{curve.at(curve.third):.3f}",
                f"{curve.at(curve.epochs):.3f}",
                f"{curve.at(curve.best):.3f}, {curve.best}",
                f"{curve.at(curve.chosen):.3f}, {curve.chosen}",
                f"{curve.losses[curve.third - 1]:.4f}, {curve.losses[-1]:.4f}",
                curve.effect,
            )


def sentences() -> Iterator[str]:
    """What the curves of each method say, by the rule."""
    for method, curves in read_curves().items():
        if not curves:
            yield f"- **{METHODS[method]}**: no curve is kept."
            continue
        counts = {"helps": 0, "harms": 0, "no difference": 0}
        for curve in curves:
            counts[curve.effect] += 1
        good = sum(curve.cost <= TOLERANCE for curve in curves)
        worst = max(curve.cost for curve in curves)
        yield (
            f"- **{METHODS[method]}**, {span_of_epochs(curves)} epochs: more training helps on "
            f"{counts['helps']}, harms on {counts['harms']} and changes nothing on "
            f"{counts['no difference']} of {len(curves)} digits; the inlier-only rule stops "
            f"within {TOLERANCE} of the best epoch on {good} of {len(curves)}, at worst "
            f"{worst:.3f} below it."
        )


def lengths() -> Iterator[str]:
    """The chosen weights of the full schedule against those of the shorter one, on the same classes."""
    plans = {plan for _, longer, _, shorter, _ in LENGTHS for plan in (longer, shorter)}
    rows = {plan: cells(plan) for plan in plans}
    for data, plan, method, shorter_plan, shorter_row in LENGTHS:
        full, short = rows[plan][method], rows[shorter_plan][shorter_row]
        gains = [auroc(full[cell]) - auroc(short[cell]) for cell in full if cell in short]
        epochs = [next(iter(row.values())).config["trainer"]["max_epochs"] for row in (full, short)]
        yield (
            f"- **{METHODS[method]}** on {data}, {epochs[0]} epochs against {epochs[1]}, {len(gains)} classes, "
            f"the weights that held-out inliers chose: {compared(gains)}."
        )


def span_of_epochs(curves: Sequence[Curve]) -> str:
    """The fewest and the most epochs of some curves."""
    fewest = min(curve.epochs for curve in curves)
    most = max(curve.epochs for curve in curves)
    return str(most) if fewest == most else f"{fewest} to {most}"


def draw(path: Path) -> None:
    """Draws a panel for each method: AUROC above, the inlier loss relative to its first epoch below."""
    from noveltylab.run.plots import new_figure, save_figure

    figure = new_figure(12.0, 5.4)
    panels = figure.subplots(2, len(METHODS), sharex="col")
    for place, (method, curves) in enumerate(read_curves().items()):
        draw_panel(panels[0, place], panels[1, place], curves)
        panels[0, place].set_title(METHODS[method], fontsize=10, loc="left")
        panels[1, place].set_xlabel("epoch", fontsize=9)
    panels[0, 0].set_ylabel("AUROC of the test images", fontsize=9)
    panels[1, 0].set_ylabel("loss of held-out inliers,\nshare of the first", fontsize=9)
    figure.suptitle("Digits of MNIST; a dot is the epoch that held-out inliers chose", fontsize=10)
    save_figure(figure, path)


def draw_panel(above: "Axes", below: "Axes", curves: Sequence[Curve]) -> None:
    """Draws the curves of one method."""
    for curve in curves:
        epochs = range(1, curve.epochs + 1)
        (line,) = above.plot(epochs, curve.aurocs, linewidth=1.3)
        above.plot(curve.chosen, curve.at(curve.chosen), "o", color=line.get_color())
        relative = [loss / curve.losses[0] for loss in curve.losses]
        name = f"digit {curve.inlier}"
        below.plot(epochs, relative, color=line.get_color(), label=name, linewidth=1.3)
    for axes in (above, below):
        axes.tick_params(labelsize=8)
    if curves:
        below.set_ylim(0, None)
        below.legend(fontsize=8, loc="upper right")


#: Marker of the page -> the lines between it and its end.
TABLES = {"curves": curve_table, "curves say": sentences, "lengths": lengths}


def main() -> None:
    if write_if_asked("experiments.curves", PAGE, TABLES):
        draw(FIGURE)
    print("\n".join([*curve_table(), "", *sentences(), "", *lengths()]))


if __name__ == "__main__":
    main()
