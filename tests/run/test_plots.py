"""The pictures are drawn for every shape and scale of data, and show the cases that they name."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from noveltylab.run.plots import plot_histogram, plot_kinds, plot_roc
from noveltylab.run.plots_in_time import plot_recording
from noveltylab.run.plots_of_images import (
    GROUPS,
    Page,
    colour_errors,
    extreme_cases,
    plot_reconstructions,
    plot_rows,
)

N = 60
RNG = np.random.default_rng(0)
IS_OUTLIER = np.arange(N) % 3 == 0


def inked(path: Path) -> float:
    """Share of the picture that is not white."""
    pixels = matplotlib.image.imread(path)[..., :3]
    return float((pixels < 1).any(-1).mean())


def test_roc(tmp_path: Path) -> None:
    line = np.linspace(0, 1, 5)
    plot_roc(tmp_path / "one.png", {"mse": (line, np.sqrt(line), 0.7)})
    plot_roc(tmp_path / "nine.png", {f"s{i}": (line, line ** (1 / (i + 1)), 0.7) for i in range(9)})
    assert 0.01 < inked(tmp_path / "one.png") < inked(tmp_path / "nine.png")


@pytest.mark.parametrize(
    "scores",
    [
        RNG.normal(size=N),
        RNG.standard_cauchy(N) * 1e-12,
        np.exp(5 * RNG.normal(size=N)) * 1e12,
        np.exp(RNG.uniform(-300, 300, N)),
        np.zeros(N),
        np.full(N, -1e12),
        1e12 + np.arange(N) * 1e-4,
    ],
    ids=[
        "normal",
        "heavy tails",
        "log",
        "hundreds of decades",
        "zeros",
        "constant",
        "nearly constant",
    ],
)
def test_histogram_of_any_scale(tmp_path: Path, scores: NDArray[np.float64]) -> None:
    plot_histogram(tmp_path / "h.png", scores, IS_OUTLIER, "mse")
    assert inked(tmp_path / "h.png") > 0.02


def test_histogram_counts_every_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.axes import Axes

    shares: list[Any] = []
    stairs = Axes.stairs
    monkeypatch.setattr(Axes, "stairs", lambda *a, **k: shares.append(a[1]) or stairs(*a, **k))  # type: ignore[func-returns-value]
    plot_histogram(tmp_path / "h.png", RNG.standard_cauchy(N), IS_OUTLIER, "mse")
    np.testing.assert_allclose([share.sum() for share in shares], 1)


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_reconstructions_of_any_kind_of_image(tmp_path: Path, channels: int, dtype: Any) -> None:
    images = RNG.random((N, channels, 6, 9)) * (255 if dtype is np.uint8 else 1)
    rebuilt = 1.5 * RNG.random((N, channels, 6, 9)) - 0.2  # a network may leave [0, 1]
    rebuilt[0] = np.nan
    scores = RNG.normal(size=N)
    inputs, names = images.astype(dtype), ["a very/long/name.png"] * N
    plot_reconstructions(
        tmp_path / "both.png",
        inputs,
        {"reconstruction": rebuilt},
        scores,
        IS_OUTLIER,
        names,
        cases=3,
    )
    plot_reconstructions(tmp_path / "inputs.png", inputs, {}, scores, IS_OUTLIER, cases=3)
    tall = [
        matplotlib.image.imread(tmp_path / name).shape[0] for name in ("inputs.png", "both.png")
    ]
    assert tall[0] < tall[1]


@pytest.mark.parametrize("name", [r"$\frac{$", "a_$x^$", "漢字.png", "𝔸.png", "two\nlines"])
def test_names_that_are_no_words_are_drawn_as_they_are(tmp_path: Path, name: str) -> None:
    images = RNG.random((2, 1, 4, 4))
    plot_reconstructions(
        tmp_path / "a.png", images, {}, np.array([0.0, 1.0]), np.array([False, True]), [name] * 2
    )
    plot_recording(
        tmp_path / "b.png", RNG.random((8, 20)), 1.0, [], np.arange(2) + 0.5, np.arange(2.0), name
    )


def test_a_name_of_bytes_that_are_no_text_is_drawn(tmp_path: Path) -> None:
    images = RNG.random((2, 1, 4, 4))
    names, is_outlier = ["\x1b[31m\udcff.png"] * 2, np.array([False, True])
    plot_reconstructions(tmp_path / "a.png", images, {}, np.arange(2.0), is_outlier, names)
    assert inked(tmp_path / "a.png") > 0.05


def test_kinds_and_error_maps_have_rows_of_their_own(tmp_path: Path) -> None:
    images, reconstructions = RNG.random((N, 3, 8, 8)), RNG.random((N, 3, 8, 8))
    errors = np.abs(images - reconstructions).mean(1)
    scores, names = RNG.normal(size=N), [f"{row}.png" for row in range(N)]
    kinds = ["$dent" if outlier else "good" for outlier in IS_OUTLIER]
    for path, extra in {
        "plain": {},
        "errors": {"errors": errors},
        "both": {"errors": errors, "kinds": kinds},
    }.items():
        plot_reconstructions(
            tmp_path / f"{path}.png",
            images,
            {"reconstruction": reconstructions},
            scores,
            IS_OUTLIER,
            names,
            cases=3,
            **extra,
        )
    heights = [
        matplotlib.image.imread(tmp_path / f"{path}.png").shape[0]
        for path in ("plain", "errors", "both")
    ]
    assert heights == sorted(set(heights))
    coloured = colour_errors(errors)
    assert coloured.shape == (N, 8, 8, 3)
    row = np.unravel_index(errors.argmax(), errors.shape)
    assert coloured[row].sum() > coloured[np.unravel_index(errors.argmin(), errors.shape)].sum()
    groups = {"good": scores[~IS_OUTLIER], "$dent": scores[IS_OUTLIER]}
    plot_kinds(tmp_path / "kinds.png", groups, {"$dent": 0.5}, "mse")
    assert inked(tmp_path / "kinds.png") > 0.01


def test_reconstructions_of_few_samples(tmp_path: Path) -> None:
    images = RNG.random((2, 1, 4, 4))
    plot_reconstructions(
        tmp_path / "two.png",
        images,
        {"reconstruction": images},
        np.array([0.0, 1.0]),
        np.array([False, True]),
    )
    plot_reconstructions(
        tmp_path / "inlier.png",
        images,
        {"reconstruction": images},
        np.array([0.0, 1.0]),
        np.array([False, False]),
    )
    assert inked(tmp_path / "two.png") > 0.05 and inked(tmp_path / "inlier.png") > 0.05


def test_a_strip_shows_whole_pixels_with_white_gaps() -> None:
    images = RNG.random((3, 3, 2, 7)).astype(np.float32)
    page = Page.of(images, ["input", "reconstruction"], columns=4)
    wide, high = 7 * 15, 2 * 15  # the fewest repeats that make a hundred
    assert (page.width, page.height, page.gap) == (wide, high, 6)
    strip = np.asarray(page.images("input", images))
    assert strip.shape == (high + 6, page.margin + 4 * (wide + 6), 3)
    for column, image in enumerate(images):
        tile = strip[:high, page.margin + column * (wide + 6) :][:, :wide]
        np.testing.assert_array_equal(tile[::15, ::15], (image * 255).round().transpose(1, 2, 0))
        np.testing.assert_array_equal(tile[14::15, 14::15], tile[::15, ::15])
    assert (strip[:, page.margin + wide : page.left(1)] == 255).all()
    assert (strip[:, page.left(3) :] == 255).all()  # a column without an image
    titled = strip[:, : page.margin]
    assert (titled < 128).any() and (titled[:, -page.gap :] == 255).all()


def test_a_large_image_becomes_smaller_and_keeps_its_mean() -> None:
    images = RNG.random((1, 3, 200, 400)).astype(np.float32)
    page = Page.of(images, ["input"], columns=1)
    assert (page.width, page.height) == (200, 100)
    tile = np.asarray(page.images("input", images))[:100, page.margin : page.margin + 200]
    blocks = (images[0] * 255).reshape(3, 100, 2, 200, 2).mean((2, 4)).transpose(1, 2, 0)
    assert np.abs(tile - blocks).max() <= 1.6  # rounded twice, once for rows and once for columns


def test_words_stand_over_the_middle_of_their_images() -> None:
    page = Page.of(RNG.random((2, 1, 100, 100)), ["score"], columns=3)
    strip = np.asarray(page.words("score", ["0.5", "0.25"])) < 128
    inked_columns = [
        strip[:, page.left(column) :][:, : page.width].any((0, 2)) for column in range(3)
    ]
    for inked_column in inked_columns[:2]:
        places = np.flatnonzero(inked_column)
        assert (places[0] + places[-1]) / 2 == pytest.approx(50, abs=2)
    assert not inked_columns[2].any()


def test_rows_stand_below_each_other_in_their_order(tmp_path: Path) -> None:
    dark, bright = np.zeros((4, 1, 8, 8)), np.ones((3, 3, 8, 8)) * [[[1.0]], [[0.0]], [[0.0]]]
    plot_rows(tmp_path / "one.png", [("$dark", dark)])
    plot_rows(tmp_path / "two.png", [("$dark", dark), ("red", bright)])
    one, two = (
        matplotlib.image.imread(tmp_path / name)[..., :3] for name in ("one.png", "two.png")
    )
    assert one.shape[1] == two.shape[1]
    assert one.shape[0] < two.shape[0]
    lines = {name: np.flatnonzero((np.abs(two - colour).max(-1) < 0.01).sum(1) > 200)
             for name, colour in {"dark": [0, 0, 0], "red": [1, 0, 0]}.items()}  # fmt: skip
    assert lines["dark"].max() < lines["red"].min()
    share = {
        name: (np.abs(two - colour).max(-1) < 0.01).sum()
        for name, colour in {"dark": 0, "red": [1, 0, 0]}.items()
    }
    assert share["red"] / share["dark"] == pytest.approx(3 / 4, abs=0.03)


@given(
    st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=1, max_size=30),
    st.integers(1, 5),
)
def test_extreme_cases_are_extreme_and_survive_taking_the_subset(
    rows: list[tuple[int, bool]], cases: int
) -> None:
    scores, is_outlier = np.array([s for s, _ in rows], float), np.array([o for _, o in rows])
    groups = extreme_cases(scores, is_outlier, cases)
    assert list(groups) == list(GROUPS)
    for title, indices in groups.items():
        kind = title.startswith("outliers")
        assert (is_outlier[indices] == kind).all()
        ordered = sorted(scores[is_outlier == kind], reverse="highest" in title)
        assert scores[indices].tolist() == ordered[:cases]
    subset = np.unique(np.concatenate(list(groups.values())))
    again = extreme_cases(scores[subset], is_outlier[subset], cases)
    for title, indices in again.items():
        np.testing.assert_array_equal(subset[indices], groups[title])


def test_waves_are_shown_about_grey(tmp_path: Path) -> None:
    waves = np.zeros((4, 1, 8, 8), np.int16)
    waves[:, :, :4] = 32767
    pictures = waves.astype(np.float32) / 65536 + 0.5
    for name, images in {"wave": waves, "picture": pictures}.items():
        plot_reconstructions(
            tmp_path / f"{name}.png",
            images,
            {"reconstruction": pictures},
            np.arange(4.0),
            np.arange(4) > 1,
        )
    wave, picture = (
        matplotlib.image.imread(tmp_path / f"{name}.png") for name in ("wave", "picture")
    )
    assert np.abs(wave - picture).max() < 0.01


@pytest.mark.parametrize("shape", [(64, 640), (5120,)], ids=["log-mel", "wave"])
def test_recording_shows_picture_scores_and_events(tmp_path: Path, shape: tuple[int, ...]) -> None:
    times, scores = np.arange(10) + 0.5, 1e6 * RNG.random(10)
    title = "mixture_evaltest_babycry_000"
    plot_recording(tmp_path / "none.png", RNG.random(shape), 10, [], times, scores, title)
    plot_recording(
        tmp_path / "two.png", RNG.random(shape), 10, [(2, 3.5), (6, 9.9)], times, scores, title
    )
    shade = 0.75 + 0.25 * np.array([0xD5, 0x5E, 0x00]) / 255  # a quarter of orange over white
    none, two = (
        matplotlib.image.imread(tmp_path / name)[..., :3] for name in ("none.png", "two.png")
    )
    shaded = [(np.abs(image - shade) < 0.02).all(-1).sum(0) > 20 for image in (none, two)]
    assert not shaded[0].any()
    columns = np.flatnonzero(shaded[1])
    gap = np.diff(columns).argmax()
    width = columns[-1] - columns[0]
    assert (columns[gap] - columns[0]) / width == pytest.approx(1.5 / 7.9, abs=0.01)
    assert (columns[gap + 1] - columns[0]) / width == pytest.approx(4 / 7.9, abs=0.01)


def test_recording_of_one_segment(tmp_path: Path) -> None:
    plot_recording(
        tmp_path / "one.png",
        np.zeros((64, 64)),
        0.74,
        [(0.0, 0.2)],
        np.array([0.37]),
        np.zeros(1),
        "short",
    )
    assert inked(tmp_path / "one.png") > 0.1


def test_neither_pyplot_nor_torch_is_imported() -> None:
    code = (
        "import sys, noveltylab.run.plots as f, numpy as np, tempfile\n"
        "assert 'matplotlib' not in sys.modules\n"
        "f.plot_histogram(tempfile.mkdtemp() + '/h.png', np.arange(4.), np.arange(4) > 1, 's')\n"
        "assert not {'matplotlib.pyplot', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
