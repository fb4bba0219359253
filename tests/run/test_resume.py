"""What a run may go on from: the same images, the same split, and code that is named where it
changed.
"""

import json
import math
import os
import re
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from noveltylab.errors import UserError
from noveltylab.methods.base import find_method
from noveltylab.results import provenance as results
from noveltylab.run import folder as run_folder
from noveltylab.run.build import check_count
from tests.conftest import killed
from tests.methods.conftest import METHODS, method_config

Run = Callable[..., dict[str, Any]]
SMALL_AE = (
    "method=ae",
    "method.channels=4",
    "trainer.max_epochs=2",
    "trainer.val_every=1",
    "trainer.accelerator=cpu",
)


def write_images(folder: Path, count: int, seed: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for number in range(count):
        Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8)).save(folder / f"{number:03d}.png")


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    """A folder of one's own images: 20 good ones to train on, 3 + 3 to test."""
    root = tmp_path / "parts"
    write_images(root / "train" / "good", 20)
    write_images(root / "test" / "good", 3, seed=1)
    write_images(root / "test" / "bad", 3, seed=2)
    return root


def add(root: Path) -> None:
    write_images(root / "more", 1, seed=3)
    shutil.move(root / "more" / "000.png", root / "train" / "good" / "new.png")
    (root / "more").rmdir()


def remove(root: Path) -> None:
    (root / "train" / "good" / "007.png").unlink()


def replace(root: Path) -> None:
    """Other pixels under the same name, in a file of the same time."""
    path = root / "test" / "bad" / "001.png"
    times = (path.stat().st_atime, path.stat().st_mtime)
    write_images(root / "other", 1, seed=4)
    shutil.move(root / "other" / "000.png", path)
    (root / "other").rmdir()
    os.utime(path, times)


def relabel(root: Path) -> None:
    shutil.move(root / "test" / "bad" / "002.png", root / "test" / "good" / "002b.png")


CHANGES = {
    "added": (add, r"1 image added \(train/good/new\.png\)"),
    "removed": (remove, r"1 image removed \(train/good/007\.png\)"),
    "changed": (replace, r"1 image changed \(test/bad/001\.png\)"),
    "moved": (
        relabel,
        r"1 image added \(test/good/002b\.png\); 1 image removed \(test/bad/002\.png\)",
    ),
}


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", CHANGES)
@pytest.mark.parametrize("complete", [False, True])
def test_a_run_over_changed_images_is_refused_with_what_changed(
    run_here: Run,
    tmp_path: Path,
    parts: Path,
    kind: str,
    complete: bool,
) -> None:
    """Interrupted after its first epoch, or complete already."""
    change, message = CHANGES[kind]
    arguments = (
        "data=images",
        f"data.root={parts}",
        "data.size=8",
        *SMALL_AE,
        "trainer.checkpoint_seconds=0",
    )
    with nullcontext() if complete else killed(1):
        run_here(*arguments)
    before = contents(tmp_path / "outputs")
    change(parts)
    with pytest.raises(UserError, match=rf"begun with other images: {message}; put them back"):
        run_here(*arguments)
    assert contents(tmp_path / "outputs") == before


def test_the_same_images_written_again_are_the_same(
    run_here: Run, parts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("data=images", f"data.root={parts}", "data.size=8", "method=pca")
    run_here(*arguments)
    write_images(parts / "train" / "good", 20)  # other times, equal contents
    run_here(*arguments)
    assert "complete already" in capsys.readouterr().out


def test_a_split_of_other_code_is_refused(
    run_here: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_here("method=pca")
    (path,) = (tmp_path / "outputs").rglob("result.json")
    path.unlink()
    rng = np.random.default_rng
    monkeypatch.setattr(
        "noveltylab.data.protocols.np.random.default_rng", lambda seed: rng([7, seed])
    )
    with pytest.raises(UserError, match="begun with other images"):
        run_here("method=pca")


def test_checkpoints_without_a_record_of_their_images_are_set_aside(
    run_here: Run, tmp_path: Path
) -> None:
    whole = run_here(*SMALL_AE)
    (folder,) = (path.parent for path in (tmp_path / "outputs").rglob("result.json"))
    (folder / "result.json").unlink()
    (folder / "split.npz").write_bytes(b"torn")
    assert run_here(*SMALL_AE)["scores"] == whole["scores"]
    assert (folder / "checkpoints" / "last.damaged").is_file()


def test_other_code_since_the_interruption_is_said_and_recorded(
    run_here: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two uncommitted states of one commit: the sources differ."""
    first = run_here(*SMALL_AE)
    assert "resumed" not in first["provenance"]
    (folder,) = (path.parent for path in (tmp_path / "outputs").rglob("result.json"))
    (folder / "result.json").unlink()
    old = results.code_state()
    monkeypatch.setattr(run_folder, "code_state", lambda _: {**old, "sources": "f" * 64})
    second = run_here(*SMALL_AE)
    assert second["provenance"]["resumed"] == [old]
    assert second["provenance"]["sources"] == "f" * 64
    (doubt,) = (warning for warning in second["warnings"] if "other code" in warning)
    assert old["sources"][:12] in doubt and "ffffffffffff" in doubt
    assert doubt in (folder / "run.log").read_text()


def test_the_hash_of_the_sources_sees_every_file(tmp_path: Path) -> None:
    (tmp_path / "methods").mkdir()
    (tmp_path / "a.py").write_text("x = 1\n")
    (tmp_path / "methods" / "b.py").write_text("y = 1\n")
    hashes = [results.sources_sha256.__wrapped__(tmp_path)]
    (tmp_path / "methods" / "b.py").write_text("y = 2\n")
    hashes.append(results.sources_sha256.__wrapped__(tmp_path))
    (tmp_path / "methods" / "b.py").rename(tmp_path / "c.py")
    hashes.append(results.sources_sha256.__wrapped__(tmp_path))
    assert len(set(hashes)) == 3


@pytest.mark.parametrize(
    "module",
    [
        "scoring/floors.py",
        "methods/pca.py",
        "methods/knn.py",
        "scoring/apply.py",
        "data/preprocess.py",
    ],
)
def test_a_changed_floor_is_computed_anew(
    run_here: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    run_here("method=pca", "output=" + str(tmp_path / "a"))
    cache = tmp_path / "cache"
    assert len(list(cache.glob("floors-*.npz"))) == 1
    run_here("method=pca", "output=" + str(tmp_path / "b"))
    assert len(list(cache.glob("floors-*.npz"))) == 1
    read = Path.read_bytes
    monkeypatch.setattr(
        Path,
        "read_bytes",
        lambda path: read(path) + (b"#" if path.as_posix().endswith(module) else b""),
    )
    run_here("method=pca", "output=" + str(tmp_path / "c"))
    assert len(list(cache.glob("floors-*.npz"))) == 2


def test_the_key_of_the_floors_names_all_that_computes_them() -> None:
    from noveltylab.scoring.floors import FLOOR_CODE
    from tests.test_layers import imported_modules, modules, room_of

    paths = modules()
    reached = {"methods.pca", "methods.knn", "scoring.apply"}
    while (
        additions := {name for module in reached for name in imported_modules(paths[module])}
        - reached
    ):
        reached |= additions
    compute = {
        module
        for module in reached
        if room_of(module) not in ("errors", "results", "command", "installed")
    }
    assert compute | {"scoring.floors"} == set(FLOOR_CODE)


def test_force_twice_in_a_second_keeps_both_runs(run_here: Run, tmp_path: Path) -> None:
    first = run_here("method=pca")
    for components in (8, 4, 2):
        run_here("method=pca", f"method.components={components}", "force=true")
    records = [json.loads(path.read_text()) for path in (tmp_path / "outputs").rglob("result.json")]
    assert sorted(result["config"]["method"]["components"] for result in records) == [2, 4, 8, 32]
    assert first["config"]["method"]["components"] == 32


# A refusal leaves nothing behind.

NDA = (
    "method.latent_size=4",
    "trainer.max_epochs=1",
    "trainer.select_from=0",
    "trainer.accelerator=cpu",
    "data.limit_train=64",
)


REFUSED = {
    "method at its fit": (
        ("method=nda", "method.latent_size=200"),
        ("method=nda", "method.latent_size=8"),
    ),
    "graph": (("method=ae", "trainer.cuda_graph=on"), ("method=ae",)),
    "detector": (
        ("method=pyod", "method.detector=KNN", "+method.arguments.n_neighbors=500"),
        ("method=pyod", "method.detector=KNN"),
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_refused_run_leaves_nothing_and_the_corrected_one_works(
    run_here: Run, tmp_path: Path, case: str
) -> None:
    if case == "detector":
        pytest.importorskip("pyod")
    wrong, right = REFUSED[case]
    common = (
        "trainer.max_epochs=1",
        "trainer.select_from=0",
        "trainer.accelerator=cpu",
        "data.limit_train=64",
    )
    with pytest.raises(UserError):
        run_here(*wrong, *common)
    assert not (tmp_path / "outputs").exists()
    assert run_here(*right, *common)["scores"]


def test_a_refused_force_puts_the_old_run_back(run_here: Run, tmp_path: Path) -> None:
    run_here("method=nda", *NDA)
    before = contents(tmp_path / "outputs")
    with pytest.raises(UserError, match="latent_size=200"):
        run_here("method=nda", *NDA, "method.latent_size=200", "force=true")
    assert contents(tmp_path / "outputs") == before


def test_a_refusal_in_a_folder_of_somebody_leaves_what_was_there(
    run_here: Run, tmp_path: Path
) -> None:
    folder = tmp_path / "outputs" / "p1" / "nda" / "digits" / "inlier8" / "seed0"
    folder.mkdir(parents=True)
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="latent_size=200"):
        run_here("method=nda", *NDA, "method.latent_size=200")
    assert contents(tmp_path / "outputs") == {folder / "notes.txt": b"mine"}


# As many images as a method needs.


def check(
    method: str, train: int, val: int, select: str = "val_loss", fraction: float = 0.2
) -> None:
    options = SimpleNamespace(
        method={"name": method}, protocol={"val_fraction": fraction}, select=select, folds=0
    )
    parts = SimpleNamespace(train=np.zeros(train), val=np.zeros(val))
    least = find_method(method_config(method)["_target_"]).least_images
    check_count(options, parts, least)  # type: ignore[arg-type]  # what it looks at of both


@pytest.mark.parametrize("method", METHODS)
def test_one_training_image_is_refused_by_the_number_that_a_method_needs(method: str) -> None:
    least = find_method(method_config(method)["_target_"]).least_images
    if least == 1:
        check(method, 1, 29)
        return
    with pytest.raises(
        UserError, match=rf"method={method} needs {least} training images at least.*has 1 and 29"
    ):
        check(method, 1, 29, fraction=0.98)


@pytest.mark.parametrize(
    ("split", "advice"),
    [
        ((1, 29, "val_loss", 0.98), r"take protocol\.val_fraction=0\.04 or select=last"),
        ((4, 0, "val_loss", 0.2), r"take protocol\.val_fraction=0\.25 or select=last"),
        ((139, 0, "val_loss", 0.0), r"take protocol\.val_fraction=0\.01 or select=last"),
        (
            (2, 0, "val_loss", 0.2),
            r"that takes 3 images, 5 with this protocol\.val_fraction; add some or select=last",
        ),
        (
            (1, 0, "val_loss", 0.2),
            r"that takes 3 images, 5 with this protocol\.val_fraction; add some$",
        ),
        ((1, 29, "last", 0.98), r"has 1 and 29 held out .*: take protocol\.val_fraction=0$"),
        (
            (1, 0, "last", 0.2),
            r"that takes 2 images, 2 with this protocol\.val_fraction; add some$",
        ),
    ],
)
def test_too_few_images_are_told_what_helps(
    split: tuple[int, int, str, float], advice: str
) -> None:
    with pytest.raises(UserError, match=advice):
        check("ae", *split)


@pytest.mark.parametrize("method", ["ae", "pca", "iforest", "nda", "gmm"])
def test_what_is_advised_is_enough(run_here: Run, tmp_path: Path, method: str) -> None:
    write_images(tmp_path / "parts", 9)
    arguments = (
        f"method={method}",
        "data=images",
        f"data.root={tmp_path / 'parts'}",
        "trainer.max_epochs=1",
    )
    for _ in range(4):
        try:
            run_here(*arguments, "trainer.select_from=0", "trainer.accelerator=cpu")
            return
        except UserError as error:
            assert not (tmp_path / "outputs").exists()
            if count := re.search(r"that takes \d+ images, (\d+) with", str(error)):
                write_images(tmp_path / "parts", math.ceil(int(count[1]) / 0.8))
            elif advice := re.search(r"take (\S+=[\d.]+)", str(error)):
                arguments += (advice[1],)
    raise AssertionError("the advice leads nowhere")
