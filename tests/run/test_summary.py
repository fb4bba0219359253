"""The closing screen says every number and warning, and how the weights were chosen.

It has 80 columns.
"""

import io
from typing import Any

import pytest
from rich.console import Console

from noveltylab.run.summary import print_summary

FOLDER = "outputs/a-rather-long-name-of-an-output-folder/p2/ocgan/cifar10/inlier3/seed7"


def metrics(auroc: float) -> dict[str, Any]:
    low, high = auroc - 0.01, auroc + 0.01
    return {
        "auroc": auroc,
        "auroc_ci": [low, high],
        "average_precision": 0.91,
        "eer": 0.12,
        "fpr95": 0.34,
    }


def shown(encoding: str = "utf-8", color_system: Any = None, **changes: Any) -> str:
    result = {
        "method": "ocgan",
        "data": "cifar10",
        "protocol": "p2",
        "inlier": 3,
        "inlier_name": "cat",
        "seed": 7,
        "primary": "mse",
        "scores": {"latent_discriminator": metrics(0.5432), "mse": metrics(0.6123)},
        "floor": {"pca": metrics(0.5711), "knn": metrics(0.5822)},
        "selected": {"rule": "val_loss", "epoch": 1035, "value": 0.0224572},
        "seconds": {"train": 81.25, "score": 0.24},
        "n": {"train": 4500, "val": 500, "test_inliers": 1000, "test_outliers": 9000},
        "data_verified": True,
        "warnings": [],
    }
    raw = io.BytesIO()
    with io.TextIOWrapper(raw, encoding=encoding, write_through=True) as text:
        terminal = color_system is not None
        console = Console(
            file=text, width=80, highlight=False, color_system=color_system, force_terminal=terminal
        )
        print_summary(result | changes, FOLDER, console)
        return raw.getvalue().decode(encoding)


def test_every_number_is_there_at_80_columns() -> None:
    text = shown()
    for part in (
        "ocgan · cifar10 · inlier 3 (cat) · p2 · seed 7",
        "0.6023 - 0.6223",
        "4500 train",
        "81.2 train",
    ):
        assert part in text
    rows = [line.split() for line in text.splitlines()]
    numbers = ["0.9100", "0.1200", "0.3400"]
    assert ["mse", "0.6123", "0.6023", "-", "0.6223", *numbers] in rows
    assert ["floor:", "pca", "0.5711", "0.5611", "-", "0.5811", *numbers] in rows
    assert max(len(line) for line in text.splitlines() if "folder" not in line) <= 80
    assert [
        text.index(name) for name in ("mse ", "floor: pca", "floor: knn", "latent_discriminator ")
    ] == sorted(
        text.index(name) for name in ("mse ", "floor: pca", "floor: knn", "latent_discriminator ")
    )


def test_a_long_folder_stays_on_one_line_to_be_copied() -> None:
    assert f"folder    {FOLDER}\n" in shown()


def test_ascii_output_is_possible() -> None:
    assert "ocgan - cifar10 - inlier 3 (cat)" in shown("ascii")


@pytest.mark.parametrize(
    ("selected", "words"),
    [
        (
            {"rule": "val_loss", "epoch": 35, "value": 0.0224572},
            "epoch 35, lowest loss on held-out inliers (0.02246)",
        ),
        ({"rule": "last", "epoch": 40, "value": None}, "of the last epoch, 40"),
        ({"rule": "last", "epoch": 0, "value": None}, "fitted once"),
        (
            {
                "rule": "last",
                "epoch": 20,
                "value": None,
                "phases": [
                    {"name": "without mining", "epochs": 19},
                    {"name": "with mining", "epochs": 1},
                ],
            },
            "of the last epoch, 20 (19 without mining, 1 with mining); no outlier used",
        ),
    ],
)
def test_selection_is_said_in_words(selected: dict[str, Any], words: str) -> None:
    assert words in shown(selected=selected)


def test_weights_that_have_not_seen_the_whole_method_stand_out() -> None:
    """Of an older result, by its options."""
    method = {
        "_target_": "noveltylab.methods.ocgan.OCGAN",
        "use_mining": True,
        "mining_start": 0.75,
    }
    config = {"method": method, "trainer": {"max_epochs": 1400}}
    words = "epoch 1035 (1035 without mining, none with mining), lowest loss"
    assert f"\x1b[33m{words}" in shown(color_system="standard", config=config)
    assert "(1035 " not in shown(config={**config, "method": {**method, "use_mining": False}})
    assert words not in shown(config={**config, "trainer": {"max_epochs": 1378}})


def test_numbers_that_used_outlier_labels_stand_apart() -> None:
    text = shown(
        labelled={"oracle": {"mse": {**metrics(0.7), "epoch": 12}}},
        transductive=["latent_discriminator"],
    )
    assert "oracle: mse" in text
    assert "TEST labels, an optimistic bound; not the result" in text
    assert text.index("floor: knn") < text.index("oracle: mse")
    assert "(whole test set)" in text


def test_unverified_data_is_said() -> None:
    assert "NOT verified" in shown(data_verified=False)
    assert "NOT verified" not in shown()
    assert "cannot be verified (no checksums to compare with)" in shown(data_verified=None)
    config = {"data": {"classes": "folders"}}
    assert "cannot be verified" in shown(
        data_verified=False, config=config
    )  # as kept results have it


def test_warnings_are_whole_and_in_bold_red() -> None:
    warning = "mse: only 3 distinct scores among 1000 samples, a sign of collapse, of quite some length [red]"
    assert f"WARNING   {warning}\n" in shown(warnings=[warning])
    assert f"\x1b[1;31mWARNING   {warning}" in shown(color_system="standard", warnings=[warning])
    assert "\x1b" not in shown(warnings=[warning])


def test_long_names_of_further_numbers_keep_their_distance() -> None:
    assert "segmentation_auroc_inliers 0.8499" in shown(
        extra={"segmentation_auroc_inliers": 0.8499}
    )


def test_kinds_of_defects_have_rows_of_their_own() -> None:
    text = shown(kinds={"scratch": {**metrics(0.61), "outliers": 6}})
    assert "scratch (6)" in text and "0.6100" in text


def test_floors_of_what_the_method_sees_are_explained_and_the_highest_is_named() -> None:
    assert "_seen" not in shown()
    floors = {
        name: metrics(value)
        for name, value in (("pca", 0.57), ("pca_seen", 0.61), ("norm_seen", 0.66))
    }
    text = shown(floor=floors)
    assert "floor: norm_seen" in text
    assert "the highest is norm_seen, 0.6600" in text


def test_an_older_result_calls_no_score_inverted_whose_interval_reaches_a_half() -> None:
    warnings = [
        "mse: inverted, an AUROC of 0.450 means that inliers get higher scores than outliers.",
        "another",
    ]
    for auroc, lines in ((0.45, 2), (0.495, 1)):
        assert shown(warnings=warnings, scores={"mse": metrics(auroc)}).count("WARNING") == lines


def test_class_leakage_is_said_in_words() -> None:
    leakage = {"neighbours": 10, "inliers": 0.907, "all": 0.762}
    line = "91% of the 10 nearest neighbours of a test inlier are of another class"
    assert line in shown(leakage=leakage)
    assert "nearest neighbours" not in shown()


@pytest.mark.parametrize(
    ("classes", "features", "advises"),
    [
        ("folders", 0.7, True),
        ("folders", 0.6, False),
        (["a"], 0.7, False),
        ("folders", None, False),
    ],
)
def test_own_images_are_told_of_features_that_do_better(
    classes: Any, features: float | None, advises: bool
) -> None:
    floor = {"pca": metrics(0.5711), "knn": metrics(0.5822)}
    if features is not None:
        floor["features"] = metrics(features)
    config = {"data": {"classes": classes}}
    text = shown(floor=floor, config=config)
    assert ("take method=features" in text) == advises
    assert ("by a network trained on ImageNet" in text) == (features is not None)
