"""The numbers of docs/notes/claims.md that need code: rank correlations, what holds of CA-Entropy,
and the tables between its markers.

python -m experiments.claims           # prints them
python -m experiments.claims --write   # and writes the tables into docs/notes/claims.md and docs/methods/features.md
"""

import argparse
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean

from scipy.stats import spearmanr

from experiments.keep import archive
from experiments.pages import header, row, with_tables
from experiments.rule import auroc, aurocs, cells, compared, rows_of_plan
from noveltylab.report.collect import Run, collect
from noveltylab.report.published import read_tables
from noveltylab.results.files import write_atomic
from noveltylab.scoring.auroc import standard_error

PAGE = Path(__file__).parents[1] / "docs" / "notes" / "claims.md"
TABLE, FLOORS = "nda/table3_cifar10", ("pca", "knn")
#: Data of a study of batch statistics at test, and what a table calls it.
STUDIES = {"cifar10": "CIFAR-10 P2", "mnist": "MNIST P1", "fmnist": "Fashion-MNIST P1"}
#: What is printed of a method on such data: the table and its row.
PRINTED = {
    ("nda", "cifar10"): ("nda/table3_cifar10", "Ours"),
    ("nda", "mnist"): ("nda/table4_mnist", "Ours"),
    ("nda", "fmnist"): ("nda/table4_fmnist", "Ours"),
    ("alocc", "cifar10"): ("nda/table3_cifar10", "ALOCC"),
    ("alocc", "mnist"): ("ocgan/table1_mnist", "ALOCC DR"),
    ("alocc", "fmnist"): ("ocgan/table1_fmnist", "ALOCC DR"),
    ("ca_entropy", "cifar10"): ("ca_entropy/table3_cifar10", "Our method"),
    ("ocgan", "cifar10"): ("ocgan/table3_cifar10", "OCGAN"),
    ("ocgan", "mnist"): ("ocgan/table1_mnist", "OCGAN"),
    ("oled", "cifar10"): ("oled/table2_cifar10", "OLED s_mask"),
}
#: How the test set was scored.
SCORED = {
    "evaluation": "evaluation mode",
    "class_order": "class order",
    "random_order": "random order",
    "apart": "inliers and outliers apart",
}
#: How the test set was scored -> AUROC by class.
Columns = dict[str, dict[int, float]]


def floors() -> dict[str, dict[int, float]]:
    """Floor -> AUROC of each class of the table's data and protocol."""
    table, levels = read_tables()[TABLE], {}
    for floor in FLOORS:
        folder = archive("classical") / table.protocol / floor / table.data
        runs = [run.result for run in collect(folder).runs]
        levels[floor] = {result.inlier: auroc(result) for result in runs}
    return levels


def correlations(ours: dict[str, dict[int, float]]) -> dict[str, list[float]]:
    """Printed row -> Spearman's correlation over the classes with each of these `floors`."""
    table = read_tables()[TABLE]
    classes = {
        column.inlier: at for at, column in enumerate(table.columns) if column.inlier is not None
    }
    return {
        line.row: [
            float(
                spearmanr(
                    [line.number(classes[inlier]) for inlier in floor], list(floor.values())
                ).statistic
            )
            for floor in ours.values()
        ]
        for line in table.rows
    }


def entropy_range(size: int) -> tuple[float, float]:
    """Lowest and highest entropy of the softmax of `size` values in [-1, 1]: the bound of batch
    norm and tanh.
    """
    entropies = []
    for high in range(1, size):  # the extremes have each value at one of both ends
        weights = [math.exp(1)] * high + [math.exp(-1)] * (size - high)
        shares = [weight / sum(weights) for weight in weights]
        entropies.append(-sum(share * math.log(share) for share in shares))
    return min(entropies), math.log(size)


def context_beside_score() -> tuple[int, float, float]:
    """CA-Entropy on Fashion-MNIST: classes where L_con alone is above the score, and both means."""
    folder = archive("learn/fmnist") / "p1" / "ca_fixed_scale"
    pairs = [
        (run.result.scores["context"].auroc, run.result.scores["novelty"].auroc)
        for run in collect(folder).runs
    ]
    return sum(context > score for context, score in pairs), *(
        mean(column) for column in zip(*pairs, strict=True)
    )


def bounds_compared() -> str:
    """CA-Entropy with the bound under which the entropy can fall beside tanh: AUROC, and L_con of
    held-out inliers.
    """
    sentences = []
    for title, plan, tanh in (
        ("MNIST P2", "mnist", "ca_entropy_average"),
        ("Fashion-MNIST P1", "fmnist", "ca_entropy"),
        ("CIFAR-10 P2", "cifar10", "ca_entropy"),
    ):
        rows = cells(plan)
        fixed_scale, by_tanh = (
            aurocs(rows["ca_fixed_scale"], "novelty"),
            aurocs(rows[tanh], "novelty"),
        )
        gains = [first - second for first, second in zip(fixed_scale, by_tanh, strict=True)]
        losses = [
            [result.selected.value for result in rows[row].values()]
            for row in ("ca_fixed_scale", tanh)
        ]
        lower = sum(first < second for first, second in zip(*losses, strict=True))
        sentences.append(
            f"{title}: {mean(fixed_scale):.3f}, with tanh {mean(by_tanh):.3f}, by class {min(gains):+.3f} to "
            f"{max(gains):+.3f}, mean {compared(gains)}; L_con is lower on {lower} of {len(gains)}."
        )
    return " ".join(sentences)


# Batch statistics at test.


def diagnosed_runs(data: str) -> dict[str, list[Run]]:
    """Method -> its kept runs of a study."""
    runs: dict[str, list[Run]] = {}
    if archive(f"learn/diagnosis_{data}").is_file():
        for run in collect(archive(f"learn/diagnosis_{data}")).runs:
            runs.setdefault(run.result.method, []).append(run)
    return runs


def diagnosed(runs: list[Run]) -> Columns:
    """AUROC of each class in evaluation mode and under batch statistics."""
    columns: Columns = {name: {} for name in SCORED}
    for run in sorted(runs, key=lambda run: run.cell):
        result = run.result
        columns["evaluation"][result.inlier] = auroc(result)
        for order, scores in result.diagnosis["batch_statistics"].items():
            columns[order][result.inlier] = scores[result.primary].auroc
    return columns


def printed_row(method: str, data: str) -> tuple[dict[int, float], float | None]:
    """What is printed of a method: AUROC by class, {} where no class is, and the mean, None where
    there is none.
    """
    if (method, data) not in PRINTED:
        return {}, None
    name, row = PRINTED[method, data]
    table = read_tables()[name]
    line = next(line for line in table.rows if line.row == row)
    classes: dict[int, float] = {}
    for index, column in enumerate(table.columns):
        value = line.number(index)
        if column.inlier is not None and value is not None:
            classes[column.inlier] = value
    return classes, line.number(table.main)


def distance(printed: dict[int, float], column: dict[int, float]) -> float:
    """Mean absolute difference over the classes of a column."""
    return mean(abs(printed[inlier] - value) for inlier, value in column.items())


def rank_correlation(printed: dict[int, float], column: dict[int, float]) -> float:
    """Spearman's, over the classes of a column."""
    return float(spearmanr([printed[inlier] for inlier in column], list(column.values())).statistic)


def by_class_table(data: str) -> Iterator[str]:
    """NDA's classes beside the printed ones, and which column is nearest to them."""
    runs = diagnosed_runs(data)["nda"]
    columns, (printed, printed_mean) = diagnosed(runs), printed_row("nda", data)
    names = {run.result.inlier: run.result.inlier_name for run in runs}
    yield from header("class", "printed", *SCORED.values())
    for inlier in columns["evaluation"]:
        values = (column[inlier] for column in columns.values())
        yield row(names[inlier], f"{printed[inlier]:.3f}", *(f"{value:.3f}" for value in values))
    means = [mean(column.values()) for column in columns.values()]
    yield row("mean", f"{printed_mean:.3f}", *(f"{value:.3f}" for value in means))
    distances = {name: distance(printed, column) for name, column in columns.items()}
    yield row("mean distance from printed", "", *(f"{value:.3f}" for value in distances.values()))
    ranks = {name: rank_correlation(printed, column) for name, column in columns.items()}
    yield row("Spearman with printed", "", *(f"{value:.2f}" for value in ranks.values()))
    yield ""
    evaluated, ordered = columns["evaluation"], columns["class_order"]
    nearer = [
        inlier
        for inlier in ordered
        if abs(printed[inlier] - ordered[inlier]) < abs(printed[inlier] - evaluated[inlier])
    ]
    level, pattern = min(distances, key=distances.__getitem__), max(ranks, key=ranks.__getitem__)
    yield f"Nearest to the printed level: {SCORED[level]}. Nearest to the printed order of classes: {SCORED[pattern]}."
    yield f"In class order {len(nearer)} of {len(ordered)} classes are nearer to their printed value than in evaluation mode."


def means_table() -> Iterator[str]:
    """NDA's means where no classes are printed."""
    yield from header("data", "classes", "printed mean", *SCORED.values())
    for data, title in STUDIES.items():
        runs = diagnosed_runs(data).get("nda", [])
        classes, printed = printed_row("nda", data)
        if runs and not classes:
            columns = diagnosed(runs).values()
            yield row(
                title,
                str(len(runs)),
                f"{printed:.3f}",
                *(f"{mean(column.values()):.3f}" for column in columns),
            )


def others_table() -> Iterator[str]:
    """The other methods with batch norm: means over the classes that were run, beside the printed
    mean.
    """
    yield from header(
        "method", "data", "classes", "printed mean", *SCORED.values(), "higher in class order"
    )
    for data, title in STUDIES.items():
        for method, runs in sorted(diagnosed_runs(data).items()):
            if method == "nda":
                continue
            columns = diagnosed(runs)
            _, printed = printed_row(method, data)
            means = [f"{mean(column.values()):.3f}" for column in columns.values()]
            evaluated, ordered = columns["evaluation"], columns["class_order"]
            higher = sum(ordered[inlier] > evaluated[inlier] for inlier in ordered)
            number = "" if printed is None else f"{printed:.3f}"
            yield row(method, title, str(len(runs)), number, *means, f"{higher} of {len(ordered)}")


def ranks_table() -> Iterator[str]:
    """The order of CIFAR-10's classes against the printed one, for the methods whose papers print
    the classes.
    """
    yield from header(
        "method", "Spearman with printed: " + SCORED["evaluation"], *list(SCORED.values())[1:]
    )
    for method, runs in sorted(diagnosed_runs("cifar10").items()):
        classes, _ = printed_row(method, "cifar10")
        if classes:
            yield row(
                method,
                *(
                    f"{rank_correlation(classes, column):.2f}"
                    for column in diagnosed(runs).values()
                ),
            )


# Class leakage.


def leakage_table() -> Iterator[str]:
    """Each class's leakage beside its floors, of three sets, and whether it says which turn over."""
    runs_by_data: dict[str, list[Run]] = {}
    for run in collect(archive("learn/leakage")).runs:
        runs_by_data.setdefault(run.result.data, []).append(run)
    yield from header("data", "class", "class leakage", *FLOORS)
    sentences = []
    for data, runs in sorted(runs_by_data.items()):
        shares, levels = leakage_of(runs)
        floor_columns = levels.values()
        names = {run.result.inlier: run.result.inlier_name for run in runs}
        for inlier in sorted(shares, key=shares.__getitem__):
            values = (f"{column[inlier]:.3f}" for column in floor_columns)
            yield row(data, names[inlier], f"{shares[inlier]:.3f}", *values)
        ranks = (f"{rank_correlation(shares, column):.2f}" for column in floor_columns)
        means = (f"{mean(column.values()):.3f}" for column in floor_columns)
        yield row(data, "mean", f"{mean(shares.values()):.3f}", *means)
        yield row(data, "Spearman with leakage", "", *ranks)
        sentences.append(turned_over(data, shares, levels["pca"], names))
    yield ""
    yield " ".join(sentences)


def leakage_of(runs: Sequence[Run]) -> tuple[dict[int, float], dict[str, dict[int, float]]]:
    """Class leakage by class, and the floors' AUROC by class."""
    shares: dict[int, float] = {}
    levels: dict[str, dict[int, float]] = {floor: {} for floor in FLOORS}
    for run in runs:
        result = run.result
        if result.leakage is None:
            raise ValueError(f"{run.folder}: has no class leakage")
        shares[result.inlier] = result.leakage.inliers
        for floor, column in levels.items():
            column[result.inlier] = result.floor[floor].auroc
    return shares, levels


def turned_over(
    data: str, shares: dict[int, float], level: dict[int, float], names: dict[int, str]
) -> str:
    """Which classes a floor turns over, and whether these are the ones that leak most."""
    inverted = {inlier for inlier, value in level.items() if value < 0.5}
    if not inverted:
        return f"{data}: PCA turns no class over."
    ranked = sorted(shares, key=shares.__getitem__, reverse=True)
    leakiest = set(ranked[: len(inverted)])
    listed = ", ".join(names[inlier] for inlier in ranked if inlier in inverted)
    words = "are" if leakiest == inverted else "are not"
    return f"{data}: PCA is below 0.5 on {listed}, which {words} the {len(inverted)} with most leakage."


# The mutual-information terms.


def terms_table() -> Iterator[str]:
    """NDA with easy, hard and no negatives on digit 2, and what the differences say."""
    runs = {run.result.method: run for run in collect(archive("learn/nda")).runs}
    without = runs["nda_no_terms"]
    yield from header(
        "negatives", "AUROC", "minus without the terms", "standard error of that", "what it says"
    )
    for name, words in (
        ("nda", "crop 0.08 to 1, mirrored and turned"),
        ("nda_hard", "crop 0.7 to 1, mirrored"),
        ("nda_harder", "crop 0.9 to 1, little jitter"),
    ):
        value, gap, error = (
            auroc(runs[name].result),
            auroc(runs[name].result) - auroc(without.result),
            error_of(runs[name], without),
        )
        yield row(words, f"{value:.4f}", f"{gap:+.4f}", f"{error:.4f}", verdict(gap, error))
    yield row("none: without the terms", f"{auroc(without.result):.4f}", "", "", "")


def error_of(first: Run, second: Run) -> float:
    """Standard error of the difference of two AUROCs as if of other test images: wider than that of
    the same ones.
    """
    metrics = [run.result.scores[run.result.primary] for run in (first, second)]
    errors = [
        standard_error(result.auroc, run.interval(result))
        for result, run in zip(metrics, (first, second), strict=True)
    ]
    return math.hypot(*errors)


def verdict(gap: float, error: float) -> str:
    """The rule: a difference is said where it is twice its standard error."""
    if abs(gap) < 2 * error:
        return "no difference shown"
    return "higher" if gap > 0 else "lower"


# OCGAN's mining.


def mining_table() -> Iterator[str]:
    """OCGAN at the full schedule with and without mining, digit by digit, and what follows."""
    rows = cells("full_schedule")
    whole, without = rows["ocgan"], rows["ocgan_without_mining"]
    yield from header("digit", "with mining", "without", "difference")
    shared = [cell for cell in whole if cell in without]
    pairs = [(auroc(whole[cell]), auroc(without[cell])) for cell in shared]
    gains = [first - second for first, second in pairs]
    digits = [str(inlier) for inlier, _ in shared]
    for digit, (first, second), gain in zip(digits, pairs, gains, strict=True):
        yield row(digit, f"{first:.4f}", f"{second:.4f}", f"{gain:+.4f}")
    means = (f"{mean(column):.4f}" for column in zip(*pairs, strict=True))
    yield row("mean", *means, f"{mean(gains):+.4f}")
    yield ""
    yield f"Mining, over {len(gains)} digits: {compared(gains)}."


# Features of a network trained elsewhere.


def features_table() -> Iterator[str]:
    """Mean AUROC of each density of features, of each set, beside the floors of raw pixels."""
    pixels = [f"pixels, {floor}" for floor in FLOORS]
    yield from header("means over classes", "classes", *DENSITIES.values(), *pixels)
    for (plan, data), title in FEATURE_SETS.items():
        rows = rows_of_plan(plan, data)
        means = [mean_auroc(rows.get(name, [])) for name in DENSITIES]
        runs = rows[next(iter(DENSITIES))]
        floors = [mean(run.result.floor[floor].auroc for run in runs) for floor in FLOORS]
        yield row(title, str(len(runs)), *means, *(f"{value:.4f}" for value in floors))


def tuned_table() -> Iterator[str]:
    """PANDA and MSAD beside the features from which each starts: mean AUROC, and the verdict."""
    yield from header("data", "method", "classes", "start", "trained on", "difference")
    for data in ("cifar10", "fmnist"):
        rows = rows_of_plan("learn/tuned", data)
        for name, (title, start) in TUNED.items():
            classes = sorted(run.result.inlier for run in rows[name])
            trained, before = by_class(rows[name], classes), by_class(rows[start], classes)
            gains = [first - second for first, second in zip(trained, before, strict=True)]
            means = (f"{mean(before):.4f}", f"{mean(trained):.4f}", compared(gains))
            yield row(FEATURE_SETS["learn/features", data], title, str(len(classes)), *means)


def video_table() -> Iterator[str]:
    """Each score of whole frames of Ped2: all frames pooled, and each clip scaled by itself."""
    yield from header("row", "score", "all frames", "EER", "each clip scaled", "EER")
    for name, (run,) in rows_of_plan("learn/ucsd_clips", "ucsd_clips").items():
        clips = run.result.apart["clips"]
        for score in clips:
            numbers = []
            for metrics in (run.result.scores[score], clips[score]):
                assert metrics is not None
                numbers += [f"{metrics.auroc:.4f}", f"{metrics.eer:.4f}"]
            yield row(f"`{name}`", f"`{score}`", *numbers)


def by_class(runs: Sequence[Run], classes: Sequence[int]) -> list[float]:
    """The AUROC of each class."""
    values = {run.result.inlier: auroc(run.result) for run in runs}
    return [values[label] for label in classes]


def mean_auroc(runs: Sequence[Run]) -> str:
    """The mean AUROC as text, "not run" without runs."""
    if not runs:
        return "not run"
    return f"{mean(auroc(run.result) for run in runs):.4f}"


# The pages.

#: Rows of learn/features, and what its table calls them.
DENSITIES = {
    "features_mahalanobis": "Mahalanobis",
    "features_knn": "neighbours",
    "features_cosine": "neighbours, cosine",
    "features_pca": "PCA",
    "features_kde": "KDE",
}
#: Plan and data set of each row, and what the table calls it.
FEATURE_SETS = {
    ("learn/features", "cifar10"): "CIFAR-10 P2, re-encoded",
    ("learn/features", "fmnist"): "Fashion-MNIST P2",
    ("learn/features", "mnist"): "MNIST P2",
    ("learn/features_coil", "coil20"): "COIL-20 P1",
    ("learn/features_ucsd", "ucsd"): "Ped2, frames",
}
#: Rows of learn/tuned: what its table calls them, and the row of features from which each starts.
TUNED = {
    "panda": ("PANDA", "features_knn"),
    "panda_ewc": ("PANDA with EWC", "features_knn"),
    "msad": ("MSAD", "features_cosine"),
}
METHOD_PAGES = PAGE.parents[1] / "methods"
#: Page of a method -> its tables.
METHOD_TABLES = {
    "features": {"features": features_table},
    "panda": {"tuned": tuned_table},
    "msad": {"tuned": tuned_table},
    "memae": {"video": video_table},
}
TABLES = {
    "diagnosis by class": lambda: by_class_table("cifar10"),
    "diagnosis means": means_table,
    "diagnosis others": others_table,
    "diagnosis ranks": ranks_table,
    "mining": mining_table,
    "terms": terms_table,
    "leakage": leakage_table,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.claims")
    parser.add_argument("--write", action="store_true", help="write the tables into docs/")
    if parser.parse_args().write:
        write_atomic(PAGE, with_tables(PAGE.read_text(), TABLES))
        for method, tables in METHOD_TABLES.items():
            page = METHOD_PAGES / f"{method}.md"
            write_atomic(page, with_tables(page.read_text(), tables))
    for name, lines in TABLES.items():
        print("\n".join([f"{name}:", *lines(), ""]))
    ours = floors()
    print(f"{TABLE}: Spearman's correlation over the classes with " + " and ".join(FLOORS))
    for name, values in correlations(ours).items():
        print(f"{name:12}" + "".join(f"{value:7.2f}" for value in values))
    for size in (16, 100):
        low, high = entropy_range(size)
        print(f"entropy under tanh, {size} values: {low:.3f} to {high:.3f}")
    above, context, score = context_beside_score()
    print(
        f"context above CA-Entropy's score on Fashion-MNIST: {above} classes, {context:.3f} and {score:.3f}"
    )
    print(f"CA-Entropy's bound: {bounds_compared()}")
    print("mean AUROC  " + "".join(f"{mean(floor.values()):7.3f}" for floor in ours.values()))


if __name__ == "__main__":
    main()
