"""What OLED's learned mask is worth, from kept results and by one rule; claims.md has these sentences.

python -m experiments.mask

The rule: a row is ahead of another where it is so in every pair (each seed, or each class) and Student's 95 percent interval of
the mean difference leaves out 0. Everything else is no difference shown.
"""

from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

from scipy.stats import t as student

from noveltylab.report.collect import collect
from noveltylab.schema import Result

KEPT = Path(__file__).parent / "results" / "learn"
#: The controls of learn/oled_mask.yaml and what they are.
CONTROLS = {
    "oled_frozen": "a mask generator that is never trained",
    "oled_half": "the image at half its brightness",
    "oled_none": "no mask",
}
#: Ways to choose the epoch in the same plan.
SELECTIONS = {
    "oled": "the last epoch",
    "oled_rec_mask": "the lowest L_rec + L_mask",
    "oled_rec": "the lowest L_rec",
}


def cells(plan: str) -> dict[str, dict[tuple[int, int], Result]]:
    """Method -> (inlier, seed) -> result of a plan's kept runs."""
    rows: dict[str, dict[tuple[int, int], Result]] = {}
    for run in collect(KEPT / plan).runs:
        rows.setdefault(run.result.method, {})[run.result.inlier, run.result.seed] = run.result
    return {method: dict(sorted(row.items())) for method, row in sorted(rows.items())}


def aurocs(row: dict[tuple[int, int], Result], score: str = "s_mask") -> list[float]:
    """The AUROC of each cell, in the order of class and seed."""
    return [metrics.auroc for result in row.values() if (metrics := result.scores[score]) is not None]


def of_extra(row: dict[tuple[int, int], Result], name: str) -> float:
    """The mean over the cells of one of the method's own metrics."""
    return mean(float(result.extra[name]) for result in row.values())


def interval(differences: Sequence[float]) -> tuple[float, float]:
    """Student's 95 percent of the mean."""
    count = len(differences)
    half = float(student.ppf(0.975, count - 1)) * stdev(differences) / count**0.5
    return mean(differences) - half, mean(differences) + half


def verdict(differences: Sequence[float]) -> str:
    """What the rule says of first minus second: "ahead", "behind" or "no difference shown"."""
    low, high = interval(differences)
    if min(differences) > 0 and low > 0:
        return "ahead"
    if max(differences) < 0 and high < 0:
        return "behind"
    return "no difference shown"


def compared(differences: Sequence[float]) -> str:
    """A mean difference, its interval and the verdict in words."""
    low, high = interval(differences)
    return f"{mean(differences):+.4f} ({low:+.4f} to {high:+.4f}): {verdict(differences)}"


def sentences() -> list[str]:
    """The findings, one sentence each."""
    rows = cells("oled_mask")
    learned = aurocs(rows["oled"])
    lines = [f"s_mask with the learned mask: {mean(learned):.4f} on digit 2, mean of {len(learned)} seeds."]
    for method, meaning in CONTROLS.items():
        control = aurocs(rows[method])
        differences = [first - second for first, second in zip(learned, control, strict=True)]
        by_seed = ", ".join(f"{difference:+.4f}" for difference in differences)
        lines.append(f"Against {meaning} ({mean(control):.4f}) by seed {by_seed}; mean {compared(differences)}.")
    segmentation = {method: of_extra(rows[method], "segmentation_auroc_inliers") for method in ("oled_frozen", "oled")}
    lines.append(
        f"Segmentation of inliers: {segmentation['oled_frozen']:.3f} never trained, {segmentation['oled']:.3f} learned."
    )
    hard = rows["oled_ste"]
    gains = [first - second for first, second in zip(aurocs(hard), learned, strict=True)]
    lines.append(
        f"With the straight-through gradient segmentation is {of_extra(hard, 'segmentation_auroc_inliers'):.3f} and "
        f"{of_extra(hard, 'hidden_share_inliers'):.2f} of the digit is hidden, where Eq. 2 hides "
        f"{of_extra(rows['oled'], 'hidden_share_inliers'):.2f}; its s_mask minus that of Eq. 2 is {compared(gains)}."
    )
    chosen = ", ".join(f"{meaning} {mean(aurocs(rows[name])):.4f}" for name, meaning in SELECTIONS.items())
    epochs = {result.selected.epoch for name in SELECTIONS for result in rows[name].values()}
    same = f"; all chose epoch {min(epochs)}, so that nothing tells the rules apart here" if len(epochs) == 1 else ""
    lines.append(f"s_mask by what chose the epoch: {chosen}{same}.")
    (digits,) = cells("mnist_memae").values()
    gains = [first - second for first, second in zip(aurocs(digits), aurocs(digits, "s_rec"), strict=True)]
    largest = max(range(len(gains)), key=gains.__getitem__)
    lines.append(
        f"s_mask minus s_rec over MNIST's ten digits, one seed: {compared(gains)}; without digit {largest} "
        f"({gains[largest]:+.4f}) the mean is {mean(gains[:largest] + gains[largest + 1 :]):+.4f}."
    )
    eight = digits[8, 0].extra
    both = " and ".join(f"{eight[f'segmentation_auroc_{kind}']:.3f}" for kind in ("inliers", "outliers"))
    every = [float(result.extra["segmentation_auroc_inliers"]) for result in digits.values()]
    lines.append(
        f"Table 5, segmentation by the mask of digit 8: {both} on inliers and outliers where 0.850 and 0.847 are printed; "
        f"ten digits have {min(every):.2f} to {max(every):.2f} on inliers."
    )
    return lines


def main() -> None:
    for line in sentences():
        print(line)


if __name__ == "__main__":
    main()
