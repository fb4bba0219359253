"""The rank correlations in claims.md: do printed rows stand in the order of what raw pixels give?

python -m experiments.claims
"""

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


def main() -> None:
    ours = floors()
    print(f"{TABLE}: Spearman's correlation over the classes with " + " and ".join(FLOORS))
    for row, found in correlations(ours).items():
        print(f"{row:12}" + "".join(f"{value:7.2f}" for value in found))
    print("mean AUROC  " + "".join(f"{mean(floor.values()):7.3f}" for floor in ours.values()))


if __name__ == "__main__":
    main()
