import dataclasses
from pathlib import Path

import pytest
import yaml

from noveltylab.errors import UserError
from noveltylab.job import CONF
from noveltylab.report.published import PLACES, choose, printed_for, read_field, read_tables

TABLES = read_tables()


def number(ident: str, row: str, column: str) -> float | None:
    table = TABLES[ident]
    (line,) = [line for line in table.rows if line.row == row]
    return line.number([column.name for column in table.columns].index(column))


@pytest.mark.parametrize(
    ("ident", "row", "column", "printed"),
    [
        ("ocgan/table1_mnist", "OCGAN", "Mean", 0.977),
        ("ocgan/table2_mnist", "OCGAN", "8", 0.939),
        ("ocgan/table2_mnist", "DSVDD", "Mean", 0.948),
        ("ocgan/table3_cifar10", "OCGAN", "ship", 0.82),
        ("ca_entropy/table2_mnist", "PixCNN", "8", 0.34),
        ("ca_entropy/table3_cifar10", "Our method", "Mean", 0.6555),
        ("oled/table1_mnist", "OLED s_mask", "Mean", 0.9851),
        ("oled/table3_ucsd", "OLED s_avg", "EER", 0.054),
        ("oled/table3_ucsd", "TSC", "EER", None),
        ("oled/table5_mnist", "OLED", "Outlier", 0.8472),
        ("nda/table3_cifar10", "Ours", "frog", 0.975),
        ("nda/table5_dcase", "Ours", "home", 0.68),
        ("nda/table5_dcase", "Ours", "Mean", None),
        ("nda/table6_antispoofing", "Ours", "Replay to CASIA", 0.308),
    ],
)
def test_numbers_of_the_papers(ident: str, row: str, column: str, printed: float | None) -> None:
    assert number(ident, row, column) == printed


def test_digits_are_kept_as_printed() -> None:
    (line,) = [line for line in TABLES["nda/table4_coil100"].rows if line.row == "Ours"]
    assert line.values == ("1.0",)
    (line,) = [line for line in TABLES["ocgan/table2_mnist"].rows if line.row == "DSVDD"]
    assert line.values[-1] == "0.9480"


def test_printed_means_agree_with_their_classes_but_for_those_that_are_noted() -> None:
    for table in TABLES.values():
        for line in table.rows if table.by_class else ():
            printed = line.number(table.main)
            values = [
                line.number(i)
                for i, column in enumerate(table.columns)
                if column.inlier is not None
            ]
            numbers = [value for value in values if value is not None]
            assert len(numbers) == len(values)
            if printed is not None and abs(sum(numbers) / len(numbers) - printed) > 0.0006:
                assert any(line.row in note and str(printed) in note for note in table.notes), (
                    table.ident,
                    line.row,
                )


def test_counterparts_are_rows_of_their_tables() -> None:
    for table in TABLES.values():
        rows = {line.row for line in table.rows}
        assert set(table.counterparts) <= rows
        assert table.full is None or table.full in table.counterparts
        assert table.ident.startswith(("ocgan/", "ca_entropy/", "oled/", "nda/"))
        assert table.ident.endswith(f"_{table.data}")


def test_a_row_of_an_ablation_is_the_whole_method_of_no_other_table() -> None:
    ablations = [table for table in read_tables().values() if table.ablation]
    for table in ablations:
        for row, counterpart in table.counterparts.items():
            run = (
                yaml.safe_load((CONF / "method" / f"{counterpart.method}.yaml").read_text())
                | counterpart.options
            )
            for ablation in ablations:
                if (
                    ablation.ident == table.ident
                    or ablation.paper != table.paper
                    or row == table.full
                ):
                    continue
                whole = ablation.counterparts[str(ablation.full)].options
                assert any(run[key] != value for key, value in whole.items()), (
                    table.ident,
                    row,
                    ablation.ident,
                )


def test_is_found_inside_an_installed_package_too(tmp_path: Path) -> None:
    copy = tmp_path / "published.yaml"
    copy.write_bytes(PLACES[0].read_bytes())
    assert read_tables((tmp_path / "absent.yaml", copy)) == TABLES
    with pytest.raises(UserError, match="papers' numbers are missing"):
        read_tables((tmp_path / "absent.yaml",))


def test_is_plain_data() -> None:
    assert isinstance(yaml.safe_load(PLACES[0].read_text()), dict)


def test_choose_by_table_or_paper() -> None:
    assert list(choose(TABLES, ["ocgan/table2_mnist"])) == ["ocgan/table2_mnist"]
    assert len(choose(TABLES, ["oled"])) == 5
    with pytest.raises(UserError, match="did you mean 'ocgan/table2_mnist'"):
        choose(TABLES, ["ocgan/table2"])


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        (("ocgan", "mnist", "p2", "mse", 3), "OCGAN's own row"),
        (("ocgan", "mnist", "p1", "mse", 3), "only the mean"),
        (("ocgan", "mnist", "p2", "dv_x", 3), None),
        (("pca", "mnist", "p2", "residual", 3), None),
        (("ocgan", "digits", "p1", "mse", 3), None),
    ],
)
def test_the_number_printed_for_a_run(
    run: tuple[str, str, str, str, int], expected: str | None
) -> None:
    keys = ("method", "data", "protocol", "primary", "inlier")
    printed = printed_for(TABLES, {**dict(zip(keys, run, strict=True)), "config": {"method": {}}})
    if expected is None:
        assert printed is None
    else:
        name = f"ocgan/table{2 if run[2] == 'p2' else 1}_mnist"
        (line,) = (line for line in TABLES[name].rows if line.row == "OCGAN")
        assert printed == (float(line.values[3 if run[2] == "p2" else 0]), name)


@pytest.mark.parametrize(
    ("data", "row", "mean", "trained_on"),
    [
        ("cifar10", "CSI", "94.3", "this class alone"),
        ("cifar10", "DROC", "92.5", "this class alone"),
        ("cifar10", "DN2", "92.5", "ImageNet"),
        ("cifar10", "GeneralAD, DINOv2", "99.3", "more than ImageNet"),
        ("fmnist", "DN2", "94.4", "ImageNet"),
        ("fmnist", "PatchCore", "77.4", "ImageNet"),
    ],
)
def test_the_field_as_printed(data: str, row: str, mean: str, trained_on: str) -> None:
    (line,) = [line for line in read_field()["p2", data] if line.row == row]
    assert (line.mean, line.trained_on) == (mean, trained_on) and line.source


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"trained_on": "everything"}, "is none of"),
        ({"mean": "994"}, "no percentage"),
        ({"mean": "0"}, "no percentage"),
    ],
)
def test_a_row_of_the_field_is_checked(change: dict[str, str], reason: str, tmp_path: Path) -> None:
    block = {"data": "mnist", "protocol": "p2"}
    row = {"row": "Some", "mean": "99.4", "source": "a paper"}
    path = tmp_path / "published.yaml"
    path.write_text(yaml.safe_dump({"field": [{**block, "rows": [row]}]}))
    assert read_field([path])["p2", "mnist"][0].trained_on == "this class alone"
    path.write_text(yaml.safe_dump({"field": [{**block, "rows": [{**row, **change}]}]}))
    with pytest.raises(ValueError, match=f"p2 · mnist, Some: .*{reason}"):
        read_field([path])


def test_the_field_of_data_and_protocol_stands_in_one_block(tmp_path: Path) -> None:
    path = tmp_path / "published.yaml"
    path.write_text(
        yaml.safe_dump({"field": [{"data": "mnist", "protocol": "p2", "rows": []}] * 2})
    )
    with pytest.raises(ValueError, match="stands there twice"):
        read_field([path])
    path.write_text("tables: {}\n")
    assert read_field([path]) == {}


@pytest.mark.parametrize(
    ("ident", "row", "trained_on"),
    [
        ("ocgan/table3_cifar10", "OCGAN", "this class alone"),
        ("oled/table3_ucsd", "Object-centric", "more than ImageNet"),
        ("oled/table3_ucsd", "TSC", "not checked"),
        ("oled/table3_ucsd", "OLED s_avg", "this class alone"),
        ("nda/table6_antispoofing", "GFA-CNN", "inliers and outliers"),
        ("nda/table6_antispoofing", "Ours", "this class alone"),
    ],
)
def test_each_printed_row_says_what_it_was_trained_on(
    ident: str, row: str, trained_on: str
) -> None:
    (line,) = [line for line in TABLES[ident].rows if line.row == row]
    assert line.trained_on == trained_on


@pytest.mark.parametrize(
    ("trained_on", "reason"),
    [({"Some": "everything"}, "is none of"), ({"Other": "ImageNet"}, "no row of the table")],
)
def test_what_a_row_was_trained_on_is_checked(
    trained_on: dict[str, str], reason: str, tmp_path: Path
) -> None:
    table = {"title": "T", "data": "mnist", "protocol": "p2", "metric": "AUROC"}
    table |= {"rows": {"Some": "0.9"}, "trained_on": trained_on}
    path = tmp_path / "published.yaml"
    content = {"papers": {"ocgan": "a paper"}, "tables": {"ocgan/table9_mnist": table}}
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(ValueError, match=f"ocgan/table9_mnist.*{reason}"):
        read_tables([path])


def test_a_counterpart_on_other_data_has_no_number_in_the_table() -> None:
    """MemAE's row of table 3 is run on stacks of frames, of which the table's patches say nothing."""
    table = read_tables()["oled/table3_ucsd"]
    memae = table.counterparts["MemAE"]
    assert (memae.data, memae.protocol) == ("ucsd_clips", "whole_frames")
    result = {
        "method": "memae",
        "data": "ucsd",
        "protocol": "frames",
        "inlier": 0,
        "primary": "mse",
        "config": {"method": {"architecture": "video"}},
    }
    assert printed_for({table.ident: table}, result) is None
    plain = dataclasses.replace(memae, data=None, protocol=None)
    compared = dataclasses.replace(table, counterparts={"MemAE": plain})
    assert printed_for({table.ident: compared}, result) == (0.941, "oled/table3_ucsd")


def test_a_counterpart_on_other_data_names_its_protocol() -> None:
    for table in read_tables().values():
        for counterpart in table.counterparts.values():
            assert (counterpart.data is None) == (counterpart.protocol is None)
