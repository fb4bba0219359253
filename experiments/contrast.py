"""What CIFAR-10's contrast leaves of an image, without training: the table in docs/notes/questions.md.

python -m experiments.contrast                   # half a minute of a CPU core; $NOVELTYLAB_DATA

For each contrast, minus the mean image of the training inliers or not, over the ten classes under protocol 2: the variance
of an inlier about the mean image, the share of it in 16 principal components, the AUROC of the residual of these and of
|x|^2 alone, and Spearman's correlation of both with the printed row of OCGAN.
"""

from dataclasses import dataclass
from statistics import mean

import torch
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score
from torch import Tensor

from noveltylab.data.load import load
from noveltylab.data.preprocess import Preprocess
from noveltylab.data.protocols import split
from noveltylab.report.published import read_tables

TABLE, ROW = "ocgan/table3_cifar10", "OCGAN"
#: Name -> contrast, and whether the mean image is subtracted.
SETTINGS = {
    "none": ("none", False),
    "gcn minus mean": ("gcn", True),
    "gcn_image": ("gcn_image", False),
    "gcn_image minus mean": ("gcn_image", True),
}
COMPONENTS = 16
#: Printed and reported here for OCGAN already: nothing is chosen on these.
REPORTED = (0, 1, 8)
CLASSES = 10


@dataclass(frozen=True)
class Seen:
    """One class under one setting."""

    variance: float
    share: float
    residual: float
    norm: float


def measure(train: Tensor, test: Tensor, is_outlier: Tensor) -> Seen:
    """Of preprocessed images (N, C, H, W): the mean square about the mean image, and what 16
    components leave of it.
    """
    train, test = train.flatten(1), test.flatten(1)
    centre = train.mean(0)
    torch.manual_seed(0)
    _, _, basis = torch.svd_lowrank(train - centre, q=COMPONENTS + 8, niter=3)
    basis = basis[:, :COMPONENTS]
    variance = (train - centre).square().mean()
    residue = residuals(train - centre, basis).mean()
    return Seen(
        float(variance),
        float(1 - residue / variance),
        float(roc_auc_score(is_outlier, residuals(test - centre, basis))),
        float(roc_auc_score(is_outlier, test.square().mean(1))),
    )


def residuals(images: Tensor, basis: Tensor) -> Tensor:
    """Mean square of each row (N, F) outside the span of the columns of basis (F, k), (N,)."""
    return (images - (images @ basis) @ basis.T).square().mean(1)


def measure_all() -> dict[str, list[Seen]]:
    """Setting -> each of the ten classes."""
    samples = load("cifar10", None, verify=False, download=False)
    settings: dict[str, list[Seen]] = {name: [] for name in SETTINGS}
    for inlier in range(CLASSES):
        parts = split("p2", samples.labels, samples.official_test, inlier, seed=0, val_fraction=0.1)
        train, test = (samples.images[torch.from_numpy(part)] for part in (parts.train, parts.test))
        for name, (contrast, subtract_mean) in SETTINGS.items():
            preprocess = Preprocess(contrast, subtract_mean).fit(train)
            seen = measure(preprocess(train), preprocess(test), torch.from_numpy(parts.is_outlier))
            settings[name].append(seen)
    return settings


def printed() -> list[float]:
    """The paper's AUROC of each class."""
    table = read_tables()[TABLE]
    line = next(line for line in table.rows if line.row == ROW)
    return [
        line.number(index) or 0.0
        for index, column in enumerate(table.columns)
        if column.inlier is not None
    ]


def table(settings: dict[str, list[Seen]], paper: list[float]) -> list[str]:
    """Markdown, a row for each setting; the last two columns leave out the classes that are
    reported.
    """
    others = [inlier for inlier in range(CLASSES) if inlier not in REPORTED]
    lines = [
        "| contrast | variance | share in 16 components | residual: mean AUROC | Spearman | \\|x\\|^2: mean AUROC | Spearman "
        "| residual without plane, car, ship: mean | Spearman |",
        "|" + " --- |" * 9,
    ]
    for name, classes in settings.items():
        variances, shares = [seen.variance for seen in classes], [seen.share for seen in classes]
        residual, norm = [seen.residual for seen in classes], [seen.norm for seen in classes]
        few = [residual[inlier] for inlier in others]
        cells = [
            f"{min(variances):.4f} to {max(variances):.4f}",
            f"{min(shares):.2f} to {max(shares):.2f}",
            f"{mean(residual):.3f}",
            f"{spearmanr(residual, paper).statistic:.2f}",
            f"{mean(norm):.3f}",
            f"{spearmanr(norm, paper).statistic:.2f}",
            f"{mean(few):.3f}",
            f"{spearmanr(few, [paper[inlier] for inlier in others]).statistic:.2f}",
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


if __name__ == "__main__":
    print("\n".join(table(measure_all(), printed())))
