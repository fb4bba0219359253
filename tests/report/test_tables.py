"""The numbers of a report against an independent computation from the scores files."""

import csv
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from noveltylab.report.blocks import Bullets, Document, Grid, GridRow
from noveltylab.report.collect import collect
from noveltylab.report.papers import FIELD_CAPTION
from noveltylab.report.published import choose, read_field, read_tables
from noveltylab.report.records import to_csv
from noveltylab.report.tables import build
from tests.report.conftest import WriteRun, flat_metrics

TABLES = read_tables()


def make(outputs: Path, *idents: str) -> tuple[Document, list[dict[str, str]]]:
    document, records = build(collect(outputs), TABLES, "outputs", choose(TABLES, idents))
    return document, list(csv.DictReader(io.StringIO(to_csv(records))))


def grids(document: Document) -> Iterator[Grid]:
    for section in document.sections:
        yield from (block for block in section.blocks if isinstance(block, Grid))


def rows(document: Document, caption: str, name: str) -> list[dict[str, str]]:
    """The rows of a name, in the grids of a caption, as header -> text."""

    def named(grid: Grid, row: GridRow) -> dict[str, str]:
        return dict(zip(grid.headers, (cell.text for cell in row.cells), strict=True))

    matches = (grid for grid in grids(document) if grid.caption.startswith(caption))
    return [named(grid, row) for grid in matches for row in grid.rows if row.cells[0].text == name]


def bullets(document: Document, title: str) -> list[str]:
    blocks = [block for section in document.sections for block in section.blocks] + document.end
    return [
        text
        for block in blocks
        if isinstance(block, Bullets) and block.title == title
        for text in block.points
    ]


def auroc_of(folder: Path, column: str) -> float:
    with open(folder / "scores.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    return float(
        roc_auc_score(
            [int(line["is_outlier"]) for line in lines], [float(line[column]) for line in lines]
        )
    )


def ablation(use_mining: bool) -> Any:
    def change(result: dict[str, Any]) -> None:
        result["config"]["method"] |= {
            "_target_": "noveltylab.methods.ocgan.OCGAN",
            "use_latent_discriminator": True,
            "use_image_discriminator": True,
            "use_mining": use_mining,
        }

    return change


def test_numbers_follow_from_the_scores_files(outputs: Path, write_run: WriteRun) -> None:
    aurocs = np.array(
        [
            [auroc_of(write_run(inlier=label, seed=seed), "mse") for seed in range(2)]
            for label in range(10)
        ]
    )
    document, lines = make(outputs)
    ours = [line for line in lines if line["kind"] == "ours" and line["score"] == "mse"]
    by_column = {line["column"]: line for line in ours}
    for label in range(10):
        assert float(by_column[str(label)]["value"]) == pytest.approx(
            aurocs[label].mean(), abs=1e-12
        )
    assert float(by_column["mean"]["value"]) == pytest.approx(aurocs.mean(), abs=1e-12)
    assert float(by_column["mean"]["std"]) == pytest.approx(aurocs.mean(0).std(ddof=1), abs=1e-12)
    assert by_column["mean"]["cells"] == "20"
    runs = {
        (line["column"], line["seed"]): float(line["value"])
        for line in lines
        if line["kind"] == "run"
    }
    assert runs["7", "1"] == pytest.approx(aurocs[7, 1], abs=1e-12)

    (row,) = rows(document, "Our numbers", "ocgan")[:1]
    assert row["mean"] == f"{aurocs.mean():.4f}"
    assert row["std over seeds"] == f"{aurocs.mean(0).std(ddof=1):.4f} (2 seeds)"
    assert row["cells"] == "20 of 30"
    assert row["weights"] == "val_loss, epoch 4" and row["schedule"] == "700 epochs"
    low, high = map(float, row["95 % interval"].split(" to "))
    assert low < aurocs.mean() < high
    (line,) = rows(document, "AUROC by class", "ocgan")
    assert [line[str(label)] for label in range(10)] == [f"{value:.3f}" for value in aurocs.mean(1)]


def test_a_table_of_a_paper_beside_ours(outputs: Path, write_run: WriteRun) -> None:
    for label in range(10):
        for seed in range(3):
            write_run(inlier=label, seed=seed, auroc=0.95)
    document, _ = make(outputs, "ocgan/table2_mnist")
    (printed,) = rows(document, "Printed numbers", "OCGAN")
    assert (printed["8"], printed["Mean"], printed["cells"]) == ("0.939", "0.9750", "")
    printed_rows = [row for row in next(grids(document)).rows if row.kind == "others"]
    assert any(
        "issue 8" in row.cells[0].text and row.cells[-2].text == "0.925" for row in printed_rows
    )
    (ours,) = rows(document, "Printed numbers", "ours: ocgan, mse")
    assert (ours["0"], ours["Mean"], ours["cells"]) == ("0.950", "0.9500", "30 of 30")
    (floor,) = rows(document, "Printed numbers", "floor: pca")
    assert floor["Mean"] == "0.8000"
    (against,) = rows(document, "Ours against", "ocgan, mse")
    assert against["difference"] == "-0.0250" and against["what it says"] == "below the printed row"
    assert not any("Missing" in text for text in bullets(document, "Remarks"))


def test_what_rows_were_trained_on_stands_beside_them(outputs: Path, write_run: WriteRun) -> None:
    def with_features(result: dict[str, Any]) -> None:
        result["trained_on"] = "ImageNet"

    write_run(inlier=1)
    write_run(inlier=1, method="pca", change=with_features)
    document, _ = make(outputs, "ocgan/table2_mnist")
    for name in ("OCGAN", "ours: ocgan, mse", "floor: pca"):
        (line,) = rows(document, "Printed numbers", name)
        assert line["trained on"] == "this class alone"
    (line,) = rows(document, "Printed numbers", "ours: pca, mse")
    assert line["trained on"] == "ImageNet"


def test_class_leakage_stands_below_the_classes_and_beside_the_floors_of_a_run(
    outputs: Path, write_run: WriteRun
) -> None:
    def leaks(result: dict[str, Any]) -> None:
        share = {1: 0.9, 3: 0.25}[result["inlier"]]
        result["leakage"] = {"neighbours": 10, "inliers": share, "all": 0.7}

    for seed in range(2):
        write_run(inlier=1, seed=seed, change=leaks)
    write_run(inlier=3, change=leaks)
    write_run(inlier=5)
    document, _ = make(outputs)
    (line,) = rows(document, "AUROC by class", "class leakage")
    assert [line[label] for label in ("1", "3", "5")] == ["0.900", "0.250", "-"]
    runs = rows(document, "All runs", "ocgan")
    shares = {run["inlier"]: run["class leakage"] for run in runs}
    assert shares == {"1": "0.900", "3": "0.250", "5": "-"}


def test_pixel_numbers_stand_in_the_list_of_runs_where_masks_gave_some(
    outputs: Path, write_run: WriteRun
) -> None:
    def with_masks(result: dict[str, Any]) -> None:
        result["pixels"] = {"auroc": 0.91, "aupro": 0.82, "images": 40, "defects": 50}

    write_run(inlier=1)
    document, _ = make(outputs)
    assert "AUPRO" not in rows(document, "All runs", "ocgan")[0]
    write_run(inlier=3, change=with_masks)
    document, _ = make(outputs)
    without, with_some = rows(document, "All runs", "ocgan")
    assert (without["pixel AUROC"], without["AUPRO"]) == ("-", "-")
    assert (with_some["pixel AUROC"], with_some["AUPRO"]) == ("0.9100", "0.8200")


def test_the_highest_floor_of_what_a_method_sees_stands_beside_it(
    outputs: Path, write_run: WriteRun
) -> None:
    def with_seen(result: dict[str, Any]) -> None:
        result["floor"] |= {"knn_seen": flat_metrics(0.7), "norm_seen": flat_metrics(0.97)}

    for label in range(10):
        write_run(inlier=label, auroc=0.95, change=with_seen)
        write_run("oled", inlier=label, auroc=0.9)
    document, formats = make(outputs, "ocgan/table2_mnist")
    (floor,) = rows(document, "Printed numbers", "floor: norm_seen of ocgan")
    assert floor["Mean"] == "0.9700"
    header = "minus the highest floor of what it sees"
    details = {
        row["row"]: row[header]
        for name in ("ocgan", "oled")
        for row in rows(document, "Our numbers", name)
    }
    assert details == {"ocgan": "-0.0200 (norm_seen)", "oled": "-"}
    run = rows(document, "All runs", "ocgan")[0]
    assert run["highest floor of what it sees"] == "0.9700 (norm_seen)"
    assert "knn_seen of" not in str(formats)


def test_missing_cells_are_named_and_partial_means_are_compared_over_the_same_classes(
    outputs: Path, write_run: WriteRun
) -> None:
    for label, seed in ((0, 0), (0, 1), (0, 2), (8, 1)):
        write_run(inlier=label, seed=seed, auroc=0.95, change=ablation(True))
    document, _ = make(outputs)
    assert bullets(document, "Remarks") == [
        "Missing cells of ocgan: inlier 1-7, 9: seeds 0-2; inlier 8: seeds 0, 2"
    ]
    (ours,) = rows(document, "Printed numbers", "ours: ocgan, mse")[:1]
    assert ours["Mean"] == "0.9500 (2 of 10)" and ours["cells"] == "4 of 30" and ours["3"] == "-"
    by_class, whole = rows(document, "Ours against", "ocgan, mse")
    assert (
        by_class["printed"] == f"{(0.998 + 0.939) / 2:.4f}"
        and "over the 2 classes" in by_class["what it says"]
    )
    assert (
        whole["what it says"] == "not compared: 2 of 10 classes were run"
        and whole["difference"] == "-"
    )


@pytest.mark.parametrize(
    ("data", "auroc", "half", "verdict"),
    [
        ("cifar10", 0.6600, 0.001, "= tie: under 0.005"),
        ("cifar10", 0.6700, 0.001, "above the printed row"),
        ("mnist", 0.9720, 0.020, "= tie: under the standard error 0.0032"),
        ("mnist", 0.9720, 0.001, "below the printed row"),
    ],
)
def test_ties_are_marked(
    outputs: Path, write_run: WriteRun, data: str, auroc: float, half: float, verdict: str
) -> None:
    def narrow(result: dict[str, Any]) -> None:
        result["scores"] = {"mse": flat_metrics(auroc, half)}

    for label in range(10):
        write_run(data=data, inlier=label, auroc=auroc, change=narrow)
    table = "ocgan/table3_cifar10" if data == "cifar10" else "ocgan/table2_mnist"
    document, _ = make(outputs, table)
    (against,) = rows(document, "Ours against", "ocgan, mse")
    assert against["what it says"] == verdict


def test_a_tie_within_one_seed_std(outputs: Path, write_run: WriteRun) -> None:
    for label in range(10):
        for seed, value in enumerate((0.93, 0.97, 0.95)):
            write_run(inlier=label, seed=seed, auroc=value, floor=0.94)
    document, _ = make(outputs)
    (row,) = rows(document, "Our numbers", "ocgan")
    assert row["std over seeds"] == "0.0200 (3 seeds)" and row["minus pca"] == "+0.0100 ="


def test_labels_of_outliers_are_reported_apart(outputs: Path, write_run: WriteRun) -> None:
    def labelled(result: dict[str, Any]) -> None:
        result["labelled"] = {"oracle": {"mse": flat_metrics(0.96)}}

    write_run(inlier=0, auroc=0.9, change=labelled)
    write_run(inlier=1, auroc=0.7)
    document, lines = make(outputs)
    (row,) = rows(document, "Our numbers", "ocgan")
    assert row["mean"].startswith("0.8000") and row["oracle"] == "0.9600 (+0.0600, 1 cells)"
    assert "outlier_val" not in row
    assert [
        line["value"] for line in lines if line["kind"] == "oracle" and line["column"] == "mean"
    ] == ["0.96"]


def test_runs_that_differ_are_said(outputs: Path, write_run: WriteRun) -> None:
    def cut(result: dict[str, Any]) -> None:
        result["config"]["trainer"]["max_epochs"] = 1
        result["config"]["data"]["limit_train"] = 50
        result["data_verified"] = False

    write_run(inlier=0, auroc=0.9)
    write_run(inlier=1, auroc=0.9, change=cut)
    document, _ = make(outputs)
    trial = "ocgan (limit_train 50, max_epochs 1, data not verified) †"
    order = rows(document, "Our numbers", "ocgan") + rows(document, "Our numbers", trial)
    assert [row["schedule"] for row in order] == ["700 epochs", "1 epochs, limit_train 50"]
    assert f"{trial}: the data of 1 runs was not verified by checksum" in bullets(
        document, "Remarks"
    )
    assert f"Not the same data everywhere: not verified ({trial}); verified (ocgan)" in bullets(
        document, "Made with"
    )


def test_an_option_that_came_later_tells_no_old_run_apart(
    outputs: Path, write_run: WriteRun
) -> None:
    def with_average(**options: float) -> Callable[[dict[str, Any]], None]:
        def change(result: dict[str, Any]) -> None:
            ablation(True)(result)
            result["config"]["trainer"].pop("average_epochs", None)
            result["config"]["trainer"].update(options)

        return change

    write_run("old", inlier=0, auroc=0.9, change=with_average())
    write_run("new", inlier=0, auroc=0.9, change=with_average(average_epochs=0.0))
    assert not [text for text in bullets(make(outputs)[0], "Remarks") if "told apart" in text]
    write_run("averaged", inlier=0, auroc=0.9, change=with_average(average_epochs=1.0))
    assert "averaged is told apart by trainer.average_epochs=1.0" in bullets(
        make(outputs)[0], "Remarks"
    )


def test_rows_of_a_sweep_over_a_hyperparameter_are_in_no_papers_table(
    outputs: Path, write_run: WriteRun
) -> None:
    write_run(
        "oled_t75.0",
        protocol="two_thirds",
        auroc={"s_mask": 0.5},
        output=outputs / "oled" / "sweep_t",
        change=of_oled,
    )
    write_run(
        "oled",
        protocol="two_thirds",
        auroc={"s_mask": 0.9},
        output=outputs / "oled" / "table1_mnist",
        change=of_oled,
    )
    document, _ = make(outputs)
    assert {row["ours"].partition(", ")[0] for row in against(document)} == {
        "oled (oled/table1_mnist)"
    }
    assert rows(document, "Our numbers", "oled_t75.0 (oled/sweep_t)")


def of_oled(result: dict[str, Any]) -> None:
    result["primary"] = "s_mask"
    result["config"]["method"] |= {
        "_target_": "noveltylab.methods.oled.OLED",
        "primary": "s_mask",
        "mask": "learned",
    }


def against(document: Document) -> list[dict[str, str]]:
    return [
        dict(zip(grid.headers, (cell.text for cell in row.cells), strict=True))
        for grid in grids(document)
        if grid.caption.startswith("Ours against the printed rows")
        for row in grid.rows
    ]


def test_rows_of_an_ablation_stay_in_their_table(outputs: Path, write_run: WriteRun) -> None:
    for label in range(10):
        write_run("ocgan_full", inlier=label, auroc=0.95, change=ablation(True))
        write_run("ocgan_two", inlier=label, auroc=0.93, change=ablation(False))
        write_run("oled", inlier=label, auroc=0.9)
    document, _ = make(outputs, "ocgan/table4_mnist")
    names = [row.cells[0].text for row in next(grids(document)).rows if row.kind == "ours"]
    assert names == ["ours: ocgan_full, mse", "ours: ocgan_two, mse"]
    (two,) = rows(document, "Ours against", "ocgan_two, mse")
    assert (two["printed row"], two["difference"]) == ("With two Discriminators", "-0.0410")
    assert "ocgan_two is told apart by method.use_mining=False" in bullets(document, "Remarks")
    document, _ = make(outputs, "ocgan/table2_mnist")
    names = [row.cells[0].text for row in next(grids(document)).rows if row.kind == "ours"]
    assert names == ["ours: ocgan_full, mse", "ours: oled, mse"]


def test_rows_from_several_outputs_are_kept_apart(outputs: Path, write_run: WriteRun) -> None:
    write_run(auroc=0.9, output=outputs / "a")
    write_run(auroc=0.8, output=outputs / "b")
    document, _ = make(outputs)
    assert rows(document, "AUROC by class", "ocgan (a)")[0]["0"] == "0.900"
    assert rows(document, "AUROC by class", "ocgan (b)")[0]["0"] == "0.800"


def test_columns_that_are_no_classes(outputs: Path, write_run: WriteRun) -> None:
    def segmentation(result: dict[str, Any]) -> None:
        result["extra"] = {
            "segmentation_auroc_inliers": 0.5,
            "segmentation_auroc_outliers": 0.75,
            "note": "x",
        }

    write_run(
        "oled",
        protocol="two_thirds",
        inlier=8,
        auroc={"s_mask": 0.9, "s_rec": 0.8},
        change=segmentation,
    )
    write_run("oled", protocol="two_thirds", inlier=3, auroc={"s_mask": 0.9, "s_rec": 0.8})
    document, _ = make(outputs, "oled/table5_mnist")
    (ours,) = rows(document, "Printed numbers", "ours: oled, s_mask")
    assert (ours["Inlier"], ours["Outlier"], ours["cells"]) == ("0.5000", "0.7500", "1 of 3")
    inlier, outlier = rows(document, "Ours against", "oled, s_mask")
    assert (inlier["printed"], outlier["difference"]) == ("0.8499", "-0.0972")
    document, _ = make(outputs, "oled/table1_mnist")
    names = [row.cells[0].text for row in next(grids(document)).rows if row.kind == "ours"]
    assert names == ["ours: oled, s_mask", "ours: oled, s_rec"]  # each has its printed row


def test_twenty_objects_are_expected_of_coil(outputs: Path, write_run: WriteRun) -> None:
    for label in (5, 17):
        write_run(data="coil100", protocol="p1", inlier=label, auroc=0.99)
    document, _ = make(outputs)
    assert rows(document, "Our numbers", "ocgan")[0]["cells"] == "2 of 60"
    remark = "Missing cells of ocgan: inlier 5, 17: seeds 1-2; 18 more inlier classes: every seed"
    assert remark in bullets(document, "Remarks")


def test_comparisons_are_over_shared_cells(outputs: Path, write_run: WriteRun) -> None:
    for label in range(8):
        write_run("ocgan", inlier=label, auroc=0.90 + 0.001 * label)
        write_run("oled", inlier=label, auroc=0.80)
    write_run("oled", inlier=9, auroc=0.1)
    document, lines = make(outputs)
    (pair,) = [row for row in rows(document, "Paired", "ocgan") if row["second"] == "oled"]
    assert (pair["classes"], pair["cells"], pair["wins-ties-losses"]) == ("8", "8", "8-0-0")
    # 2 / 2**8, five comparisons with the floors
    assert (pair["p"], pair["Holm p"]) == ("0.00781", "0.0391")
    assert pair["what it says"] == "first is higher"
    (record,) = [line for line in lines if line["row"] == "ocgan minus oled"]
    assert float(record["value"]) == pytest.approx(0.1035) and float(record["p"]) == 2 / 2**8
    assert float(record["holm_p"]) == 5 * 2 / 2**8 and record["says"] == "first is higher"
    assert bullets(document, "Tables of the papers without a run")


def test_few_classes_are_said_plainly(outputs: Path, write_run: WriteRun) -> None:
    write_run("ocgan", auroc=0.9)
    write_run("oled", auroc=0.8)
    document, _ = make(outputs)
    assert (
        rows(document, "Paired", "ocgan")[0]["what it says"]
        == "no test of one class without the scores of both"
    )
    for label in range(1, 5):
        write_run("ocgan", inlier=label, auroc=0.9)
        write_run("oled", inlier=label, auroc=0.8)
    document, _ = make(outputs)
    assert (
        rows(document, "Paired", "ocgan")[0]["what it says"]
        == "no test: 5 classes, at least 6 are needed"
    )


def test_a_table_that_was_not_run_says_so(outputs: Path, write_run: WriteRun) -> None:
    write_run(auroc=0.9)
    document, _ = make(outputs, "nda/table5_dcase")
    assert [section.title for section in document.sections] == ["scenes · dcase"]
    assert any(
        getattr(block, "text", "").startswith("Not run") for block in document.sections[0].blocks
    )


def test_the_field_stands_below_the_printed_rows_and_enters_nothing(
    outputs: Path, write_run: WriteRun
) -> None:
    for inlier in range(10):
        write_run("ocgan", "cifar10", "p2", inlier, auroc=0.7)
        write_run("pca", "fmnist", "p2", inlier, auroc=0.9)
    write_run(protocol="p1", auroc=0.9)
    collected = collect(outputs)
    without, lines = build(collected, TABLES, "outputs")
    with_field, lines_with_field = build(collected, TABLES, "outputs", field=read_field())
    captions = {}
    for section in with_field.sections:
        blocks = [block for block in section.blocks if isinstance(block, Grid)]
        captions[section.title] = [grid.caption for grid in blocks]
    assert FIELD_CAPTION not in captions["p1 · mnist"]
    assert captions["p2 · fmnist"].index(FIELD_CAPTION) == 0  # no paper has a table of it
    place = captions["p2 · cifar10"].index(FIELD_CAPTION)
    assert captions["p2 · cifar10"][place - 1] == "Ours against the printed rows"
    assert captions["p2 · cifar10"][place + 1] == "Our numbers"
    (row,) = rows(with_field, FIELD_CAPTION, "CSI")
    assert row["mean over classes, %"] == "94.3" and row["trained on"] == "this class alone"
    # all else is as without it
    for section in with_field.sections:
        section.blocks = [
            block for block in section.blocks if getattr(block, "caption", "") != FIELD_CAPTION
        ]
    assert with_field == without and lines_with_field == lines


def test_units_measured_apart(outputs: Path, write_run: WriteRun) -> None:
    def clips(result: dict[str, Any]) -> None:
        result["apart"] = {"clips": {"mse": flat_metrics(0.7)}}

    write_run(data="mnist", auroc=0.9, change=clips)
    document, _ = make(outputs)
    (row,) = rows(document, "AUROC over other units", "ocgan")
    assert (row["unit"], row["mean"]) == ("clips", "0.7000")


@pytest.mark.parametrize(
    ("target", "column", "empty_column"), [("replay", 0, 1), ("Replay", 0, 1), ("oulu", None, 0)]
)
def test_the_error_rate_across_sets_stands_beside_the_printed_one(
    outputs: Path, write_run: WriteRun, target: str, column: int | None, empty_column: int
) -> None:
    def crossed(result: dict[str, Any]) -> None:
        rates = {"threshold": 0.1, "far": 0.2, "frr": 0.1, "hter": 0.15}
        result["cross"] = {"source": "casia", "target": target, "rule": "equal_error"}
        result["cross"] |= {"source_inliers": 2, "source_outliers": 6, "scores": {"mse": rates}}
        result["config"]["method"] |= {"_target_": "noveltylab.methods.nda.NDA"}

    write_run("nda_casia", data="antispoofing", protocol="cross", auroc=0.9, change=crossed)
    document, _ = make(outputs)
    (printed,) = rows(document, "Printed numbers", "ours: nda_casia, mse")
    columns = ("CASIA to Replay", "Replay to CASIA")
    assert printed[columns[empty_column]] == "-"
    against_printed = {row["printed row"]: row["difference"] for row in against(document)}
    if column is None:
        assert set(against_printed.values()) == {"-"}
        return
    assert printed[columns[column]] == "0.1500"
    assert against_printed[f"Ours, {columns[column]}"] == "-0.0250"


def test_formulas_are_disarmed_in_the_csv_file(outputs: Path, write_run: WriteRun) -> None:
    write_run("=1+1", auroc=0.9)
    _, lines = make(outputs)
    assert {line["row"] for line in lines if line["kind"] == "ours"} == {"'=1+1"}


def mined(epochs: int) -> Callable[[dict[str, Any]], None]:
    """Of 12 epochs the last 3 mine.

    The result is an old one, which does not record what its weights have seen.
    """

    def change(result: dict[str, Any]) -> None:
        ablation(True)(result)
        result["config"]["method"]["mining_start"] = 0.75
        result["config"]["trainer"]["max_epochs"] = 12
        result["selected"]["epoch"] = 9 + epochs

    return change


def test_weights_that_have_not_seen_the_whole_method_get_no_verdict(
    outputs: Path, write_run: WriteRun
) -> None:
    """Of ten runs seven were never mined: so the row is marked in text, CSV and verdict."""
    for label in range(10):
        write_run(inlier=label, auroc=0.975, change=mined(0 if label < 7 else 1))
    document, lines = make(outputs, "ocgan/table2_mnist")
    words = "scored weights without mining in 7 of 10 runs"
    row = document_row(document)
    (against,) = [
        row_shown
        for row_shown in rows(document, "Ours against", f"{row}, mse")
        if row_shown["printed row"] == "OCGAN"
    ]
    assert against["what it says"] == f"not the whole method, so no verdict: {words}"
    title = "Not the whole method: weights from before its last phase began"
    assert bullets(document, title) == [f"{row}: {words}"]
    assert (
        rows(document, "Our numbers", row)[0]["weights"]
        == "val_loss, epoch 9 to 10; without mining in 7 of 10 runs"
    )
    assert all(words in str(line["note"]) for line in lines if line["kind"] == "ours")
    listed = [row_shown["weights"] for row_shown in rows(document, "All runs", row)]
    assert listed == ["val_loss, epoch 9; without mining"] * 7 + ["val_loss, epoch 10"] * 3


def test_weights_that_have_seen_mining_in_one_epoch_get_one(
    outputs: Path, write_run: WriteRun
) -> None:
    for label in range(10):
        write_run(inlier=label, auroc=0.975, change=mined(1))
    document, _ = make(outputs, "ocgan/table2_mnist")
    row = document_row(document)
    (against,) = [
        line
        for line in rows(document, "Ours against", f"{row}, mse")
        if line["printed row"] == "OCGAN"
    ]
    assert against["what it says"].startswith("= tie")
    assert not [text for _, text in all_bullets(document) if "without mining" in text]


def document_row(document: Document) -> str:
    """The name of the only row of ours."""
    (name,) = {
        row.cells[0].text
        for grid in grids(document)
        if grid.caption == "Our numbers"
        for row in grid.rows
    }
    return name


def all_bullets(document: Document) -> list[tuple[str, str]]:
    blocks = [block for section in document.sections for block in section.blocks]
    return [
        (block.title, text)
        for block in blocks
        if isinstance(block, Bullets)
        for text in block.points
    ]


def test_an_older_result_calls_no_score_inverted_whose_interval_reaches_a_half(
    outputs: Path, write_run: WriteRun
) -> None:
    text = "mse: inverted, an AUROC of {} means that inliers get higher scores than outliers."

    def warned(result: dict[str, Any]) -> None:
        result["warnings"] = [text.format(result["scores"]["mse"]["auroc"]), "another"]

    write_run(inlier=0, auroc=0.45, change=warned)
    write_run(inlier=1, auroc=0.495, change=warned)
    document, _ = make(outputs)
    warnings = [row["warnings"] for row in rows(document, "All runs", "ocgan")]
    assert warnings == [f"{text.format(0.45)} another", "another"]
    assert sum("inverted" in remark for remark in bullets(document, "Remarks")) == 1
