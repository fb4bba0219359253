"""The computed numbers in claims.md: rank correlations with raw pixels, and what holds of CA-Entropy.

python -m experiments.claims
"""

import math
from pathlib import Path
from statistics import mean

from scipy.stats import spearmanr

from noveltylab.report.collect import collect
from noveltylab.report.published import read_tables

KEPT = Path(__file__).parent / "results" / "classical"
TABLE, FLOORS = "nda/table3_cifar10", ("pca", "knn")


def floors() -> dict[str, dict[int, float]]:
    """Floor -> AUROC of each class of the table's data and protocol."""
    table, found = read_tables()[TABLE], {}
    for floor in FLOORS:
        runs = [run.result for run in collect(KEPT / table.protocol / floor / table.data).runs]
        found[floor] = {result.inlier: result.scores[result.primary].auroc for result in runs}
    return found


def correlations(ours: dict[str, dict[int, float]]) -> dict[str, list[float]]:
    """Printed row -> Spearman's correlation over the classes with each of these `floors`."""
    table = read_tables()[TABLE]
    classes = {column.inlier: at for at, column in enumerate(table.columns) if column.inlier is not None}
    return {
        line.row: [
            float(spearmanr([line.number(classes[inlier]) for inlier in floor], list(floor.values())).statistic)
            for floor in ours.values()
        ]
        for line in table.rows
    }


def entropy_range(size: int) -> tuple[float, float]:
    """Lowest and highest entropy of the softmax of `size` values in [-1, 1]: the bound of batch norm and tanh."""
    entropies = []
    for high in range(1, size):  # the extremes have each value at one of both ends
        weights = [math.exp(1)] * high + [math.exp(-1)] * (size - high)
        shares = [weight / sum(weights) for weight in weights]
        entropies.append(-sum(share * math.log(share) for share in shares))
    return min(entropies), math.log(size)


def context_beside_score() -> tuple[int, float, float]:
    """CA-Entropy on Fashion-MNIST: classes where L_con alone is above the score, and both means."""
    folder = KEPT.parent / "learn" / "fmnist" / "p1" / "ca_entropy"
    pairs = [(run.result.scores["context"].auroc, run.result.scores["novelty"].auroc) for run in collect(folder).runs]
    return sum(context > score for context, score in pairs), *(mean(column) for column in zip(*pairs, strict=True))


def main() -> None:
    ours = floors()
    print(f"{TABLE}: Spearman's correlation over the classes with " + " and ".join(FLOORS))
    for row, found in correlations(ours).items():
        print(f"{row:12}" + "".join(f"{value:7.2f}" for value in found))
    for size in (16, 100):
        low, high = entropy_range(size)
        print(f"entropy under tanh, {size} values: {low:.3f} to {high:.3f}")
    above, context, score = context_beside_score()
    print(f"context above CA-Entropy's score on Fashion-MNIST: {above} classes, {context:.3f} and {score:.3f}")
    print("mean AUROC  " + "".join(f"{mean(floor.values()):7.3f}" for floor in ours.values()))


if __name__ == "__main__":
    main()
