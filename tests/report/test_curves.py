from pathlib import Path

import pytest

from noveltylab.report.collect import collect
from noveltylab.report.plots import COLOURS, POINTS, line_class, line_plot, training_curves
from tests.report.conftest import WriteRun


def lines(*values: float, name: str = "train/mse") -> str:
    return "iteration,name,value\n" + "".join(
        f"{i},{name},{value}\n" for i, value in enumerate(values)
    )


def test_a_line_is_the_mean_over_seeds(outputs: Path, write_run: WriteRun) -> None:
    (write_run(seed=0, auroc=0.9) / "metrics.csv").write_text(lines(1, 2, 3))
    (write_run(seed=1, auroc=0.9) / "metrics.csv").write_text(lines(3, 4))
    (write_run(inlier=5, auroc=0.9) / "metrics.csv").write_text(lines(7, 8, name="val/loss"))
    curves = training_curves("ocgan", collect(outputs).runs)
    assert list(curves.panels) == ["val/loss", "train/mse"]
    assert curves.panels["train/mse"] == {"0": [(0, 2), (1, 3), (2, 3)]}
    assert curves.panels["val/loss"] == {"5": [(0, 7), (1, 8)]}


@pytest.mark.parametrize(
    "tail",
    ["3,train/mse", "x,y,z\n", "4,train/mse,nan\n5,train/mse,inf\n", "\x00\n", "6,train/mse,1e\n"],
)
def test_what_a_damaged_file_still_holds_is_drawn(
    outputs: Path, write_run: WriteRun, tail: str
) -> None:
    (write_run(auroc=0.9) / "metrics.csv").write_text(lines(1, 2) + tail)
    assert training_curves("ocgan", collect(outputs).runs).panels == {
        "train/mse": {"0": [(0, 1), (1, 2)]}
    }


def test_no_file_no_curves(outputs: Path, write_run: WriteRun) -> None:
    (write_run(auroc=0.9) / "metrics.csv").unlink()
    assert training_curves("ocgan", collect(outputs).runs).panels == {}


@pytest.mark.parametrize("count", [POINTS, POINTS + 1, 1000, 1001])
def test_long_curves_are_thinned_and_keep_their_ends(
    outputs: Path, write_run: WriteRun, count: int
) -> None:
    (write_run(auroc=0.9) / "metrics.csv").write_text(lines(*range(count)))
    (points,) = training_curves("ocgan", collect(outputs).runs).panels["train/mse"].values()
    assert (
        len(points) <= POINTS + 1 and points[0] == (0, 0) and points[-1] == (count - 1, count - 1)
    )


def test_a_panel_is_logarithmic_over_a_wide_range_of_positive_values() -> None:
    def text(low: float, high: float) -> str:
        return line_plot("a<b", {"x": [(0, low), (9, high)]}, ["x"])

    assert "(log)" in text(0.01, 1) and "(log)" not in text(0.1, 1) and "(log)" not in text(0, 1)
    assert "a&lt;b" in text(0, 1) and 'points="8.0,108.0 232.0,24.0"' in text(0, 1)
    assert 'points="8.0,66.0 232.0,66.0"' in text(1, 1)


def test_every_line_has_a_look_of_its_own() -> None:
    looks = [line_class(index) for index in range(2 * COLOURS)]
    assert len(set(looks)) == 2 * COLOURS
