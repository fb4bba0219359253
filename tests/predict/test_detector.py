"""A run folder in three lines: the example of docs/own_images.md, executed."""

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from noveltylab.data.preprocess import Preprocess
from noveltylab.methods.base import Method, find_method
from noveltylab.nets.batch_norm import fold_batch_norm
from noveltylab.predict.detector import Detector
from noveltylab.predict.inputs import Reader
from noveltylab.scoring.apply import deployed, held_out_scores, novelty_scores
from noveltylab.scoring.conformal import Calibration
from tests.formats import write_images
from tests.methods.conftest import ITERATIVE, METHODS, SMALL, blobs, method_config
from tests.predict.test_predict import trained

PAGE = Path(__file__).parents[2] / "docs" / "own_images.md"


def test_the_example_of_the_docs(
    run_here: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pandas")
    monkeypatch.setattr("noveltylab.run.pipeline.draw", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    write_images(Path("parts"), {"train/good": 60, "test/good": 3, "test/odd": 3})
    folder = trained(run_here, Path("outputs"), "ca_entropy", "data=images", "data.root=parts")
    (example,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    assert str(folder) in example and len([line for line in example.splitlines() if line]) == 3
    names: dict[str, Any] = {}
    exec(example, names)
    table = names["table"]
    assert list(table.columns) == ["file", "score", "p_value", "novel", "error"]
    assert len(table) == 6 and table.score.notna().all() and table.error.isna().all()


def fitted(name: str) -> Method:
    """A small method after `prepare`, with batch norms that do something, in evaluation mode."""
    config = method_config(name)
    method_class = find_method(config.pop("_target_"))
    arguments = {key: value for key, value in config.items() if key not in ("name", "primary")}
    torch.manual_seed(0)
    method = method_class((1, 32, 32), **{**arguments, **SMALL.get(name, {})})
    method.prepare(blobs(64))
    for module in method.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and module.running_mean is not None:
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.5, 2)
    return method.eval()


def as_pixels(x: torch.Tensor) -> torch.Tensor:
    return ((x + 1) * 127.5).round().to(torch.uint8)


@pytest.mark.parametrize("name", METHODS)
def test_copies_of_a_held_out_image_have_its_score_and_p_value(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the last bit, for every score: alone, among others, as a file or an array, by one thread
    or three.
    """
    method, preprocess = fitted(name), Preprocess()
    noise = 0.1 * torch.randn(40, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    held_out = as_pixels((blobs(40, seed=2) + noise).clamp(-1, 1))
    columns = held_out_scores(method, preprocess, held_out)
    method = deployed(method)
    for key, column in columns.items():
        if key in method.transductive:
            continue
        options: Any = SimpleNamespace(method={"name": name})
        reader = Reader("image", 1, 32, "", (0, 0), "mean")
        detector = Detector(
            tmp_path, options, method, preprocess, key, (1, 32, 32), columns, reader
        )
        highest = int(column.argmax())
        copies = held_out[highest].expand(20, 1, 32, 32)
        for images in (copies, copies[:1], torch.cat([held_out[:7], copies, held_out[:3]])):
            scores = detector.novelty(images)
            same = (images == held_out[highest]).flatten(1).all(1).numpy()
            assert set(scores[same].tolist()) == {column[highest]}, key
        p_values = detector.decide(scores, 0.05)[0][same]
        assert len(set(p_values.tolist())) == 1 and p_values[0] >= 2 / 41
    assert set(detector.novelty(held_out).tolist()) == set(column.tolist())
    for number, image in enumerate(held_out):
        Image.fromarray(image[0].numpy()).save(tmp_path / f"{number:02}.png")
    for threads in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        rows = detector.rows(sorted(tmp_path.glob("*.png")))
        assert [row[1] for row in rows] == column.tolist()


@pytest.mark.parametrize("name", ITERATIVE)
def test_runs_that_scored_their_held_out_inliers_otherwise_call_no_copy_of_them_novel(
    name: str,
) -> None:
    """As old runs did: by the network as it trains, all at once; the tolerance covers the
    difference.
    """
    method, preprocess = fitted(name), Preprocess()
    noise = 0.1 * torch.randn(40, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    held_out = as_pixels((blobs(40, seed=2) + noise).clamp(-1, 1))
    old = novelty_scores(method, preprocess, held_out, 512, held_out)
    now = held_out_scores(method, preprocess, held_out)
    for key, column in old.items():
        calibration = Calibration(column)
        copies = now[key][column.argsort()]
        assert (calibration.ranks(copies) >= 1 + np.arange(40, 0, -1)).all(), key


@pytest.mark.parametrize("name", [name for name in METHODS if name != "pyod"])
def test_folded_batch_norm_gives_the_same_scores(name: str) -> None:
    method, x = fitted(name), blobs(64)
    with torch.inference_mode():
        expected = method.novelty_score(x[:5])
    fold_batch_norm(method)
    with torch.inference_mode():
        scores = method.novelty_score(x[:5])
    for key, column in expected.items():
        torch.testing.assert_close(scores[key], column, rtol=1e-3, atol=1e-4)
