"""PyOD by name: the same numbers as PyOD itself, none of its pickles, and one clear line for
everything wrong.
"""

import importlib
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from noveltylab.errors import UserError
from noveltylab.methods import pyod as adapter
from noveltylab.methods.base import Method
from tests.methods.conftest import blobs

pytest.importorskip("pyod", reason="needs the extra noveltylab[pyod]")
Make = Callable[..., Method]


def noise(count: int, seed: int) -> torch.Tensor:
    return torch.randn(count, 1, 3, 4, generator=torch.Generator().manual_seed(seed))


def fitted(make: Make, train: torch.Tensor, detector: str, **arguments: Any) -> Method:
    method = make(
        "pyod", shape=tuple(train.shape[1:]), detector=detector, arguments=arguments or None
    )
    method.prepare(train)
    return method


def flat(x: torch.Tensor) -> np.ndarray:
    return x.flatten(1).double().numpy()


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("KNN", {"n_neighbors": 3, "method": "mean"}), ("LOF", {}), ("OCSVM", {})],
)
def test_equals_pyod(make: Make, name: str, arguments: dict[str, Any]) -> None:
    train, x = noise(100, 0), noise(20, 1)
    detector = getattr(importlib.import_module(f"pyod.models.{name.lower()}"), name)(
        **arguments
    ).fit(flat(train))
    scores = fitted(make, train, name, **arguments).novelty_score(x)["decision"]
    np.testing.assert_allclose(scores.numpy(), detector.decision_function(flat(x)), rtol=1e-6)


def test_the_list_holds_detectors_of_images_only() -> None:
    detectors = adapter.detectors()
    assert {
        "ABOD",
        "AutoEncoder",
        "COPOD",
        "DeepSVDD",
        "ECOD",
        "HBOS",
        "IForest",
        "KDE",
        "LOF",
        "LUNAR",
        "VAE",
    } <= detectors.keys()
    assert not {"BaseDetector", "DOMINANT", "LSTMAD", "EmbeddingOD", "XGBOD"} & detectors.keys()
    assert all(module.startswith("pyod.models.") for module in detectors.values())


@pytest.mark.parametrize("name", ["EOCD", "os.system", "BaseDetector", "pyod.models.lof.LOF", ""])
def test_only_detectors_of_pyod_are_accepted(make: Make, name: str) -> None:
    with pytest.raises(
        UserError,
        match=rf"^method\.detector={name}: PyOD has no such detector; .*Choose from: ABOD, .*VAE$",
    ):
        make("pyod", detector=name)


def test_unknown_names_get_the_nearest(make: Make) -> None:
    with pytest.raises(UserError, match="did you mean 'ECOD'"):
        make("pyod", detector="EOCD")
    with pytest.raises(
        UserError,
        match=r"method\.arguments\.neighbors: LOF has no such argument; did you mean 'n_neighbors'",
    ):
        make("pyod", detector="LOF", arguments={"neighbors": 3})


def test_without_pyod_one_line_names_the_extra(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(f"No module named '{name}'")

    adapter.detectors.cache_clear()
    monkeypatch.setattr(adapter.importlib, "import_module", missing)
    with pytest.raises(
        UserError,
        match=r"^method=pyod: PyOD is not installed; install it with: pip install 'noveltylab\[pyod\]'$",
    ):
        adapter.PyOD((1, 4, 4))
    monkeypatch.undo()
    assert adapter.find_detector("LOF").__name__ == "LOF"


def test_a_detector_without_its_own_requirements(monkeypatch: pytest.MonkeyPatch) -> None:
    adapter.detectors()

    def missing(name: str) -> None:
        raise ModuleNotFoundError("No module named 'suod'")

    monkeypatch.setattr(adapter.importlib, "import_module", missing)
    with pytest.raises(
        UserError,
        match=r"method\.detector=SUOD: it needs a package of its own \(No module named 'suod'\)",
    ):
        adapter.find_detector("SUOD")


def test_what_a_detector_raises_is_one_line(make: Make) -> None:
    with pytest.raises(
        ValueError,
        match=r"method\.detector=MAD: fails on 30 training images of 12 pixels: .*univariate",
    ):
        fitted(make, noise(30, 0), "MAD")
    with pytest.raises(
        ValueError, match=r"method\.detector=KNN: fails on 30 training images of 12 pixels: "
    ):
        fitted(make, noise(30, 0), "KNN", n_neighbors="many")


def test_scores_that_are_not_finite_are_refused(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = fitted(make, noise(30, 0), "KNN")
    monkeypatch.setattr(method, "_decide", lambda x: np.array([1.0, np.inf, np.nan]))
    with pytest.raises(UserError, match="2 of 3 scores are not finite"):
        method.novelty_score(noise(3, 1))


@pytest.mark.parametrize(
    ("name", "arguments"), [("IForest", {}), ("DeepSVDD", {"epochs": 2, "hidden_neurons": [8, 4]})]
)
def test_fitted_again_from_the_weights_with_the_same_numbers(
    make: Make, tmp_path, name: str, arguments: dict[str, Any]
) -> None:  # type: ignore[no-untyped-def]
    x = noise(20, 1)
    method = fitted(make, noise(60, 0), name, **arguments)
    expected = method.novelty_score(x)["decision"]
    torch.save(method.state_dict(), tmp_path / "weights.pt")
    weights = torch.load(tmp_path / "weights.pt", weights_only=True)
    torch.manual_seed(5)
    copy = type(method)((1, 3, 4), detector=name, arguments=arguments)
    assert copy.seed != method.seed
    copy.load_state_dict(weights)
    with torch.inference_mode():
        assert torch.equal(copy.novelty_score(x)["decision"], expected)
    before = method._fitted
    method.load_state_dict(weights)
    assert method._fitted is before  # its own weights cost no second fit
    method.load_state_dict(fitted(make, noise(60, 7), name, **arguments).state_dict())
    assert not torch.equal(method.novelty_score(x)["decision"], expected)


def test_global_generators_are_left_as_they_were(make: Make) -> None:
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002  # the global generator is what is tested
    torch.manual_seed(1)
    method = adapter.PyOD((1, 3, 4), detector="DeepSVDD", arguments={"epochs": 1})
    before = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    method.prepare(noise(30, 0))
    method.novelty_score(noise(5, 1))
    assert random.getstate() == before[0]
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[2])


def test_a_detector_that_looks_at_the_batch_scores_one_by_one(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    """ECOD pools training and scored samples: its score of a sample together with others is another
    one.
    """
    train, x = noise(50, 0), 3 * noise(6, 1)
    method = fitted(make, train, "ECOD")
    assert bool(method.one_by_one)
    assert not bool(fitted(make, train, "KNN").one_by_one)
    scores = method.novelty_score(x)["decision"]
    assert torch.equal(scores[2:3], method.novelty_score(x[2:3])["decision"])
    detector = importlib.import_module("pyod.models.ecod").ECOD().fit(flat(train))
    np.testing.assert_allclose(scores[2], detector.decision_function(flat(x[2:3]))[0], rtol=1e-6)
    assert abs(detector.decision_function(flat(x))[2] - float(scores[2])) > 0.1


def test_copies_of_training_images_do_not_pass_for_batch_dependence(make: Make) -> None:
    assert not bool(fitted(make, blobs(40), "Sampling").one_by_one)
