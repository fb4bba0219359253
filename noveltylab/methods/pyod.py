"""Any detector of PyOD by the name of its class, on flattened pixels.

Zhao, Nasrullah and Li, 2019. Extra: noveltylab[pyod].

PyOD has no common form for a fitted detector but a pickle, which is not loaded here. The weights
file holds the training set and the seed; a detector that was not fitted in this process is fitted
again from these, with the same numbers.
"""

import ast
import importlib
import inspect
import logging
import math
import pkgutil
import random
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from numpy.typing import NDArray
from torch import Tensor

from noveltylab.errors import UserError, nearest
from noveltylab.methods.base import Method

log = logging.getLogger("noveltylab")

BASES = {"BaseDetector", "BaseDeepLearningDetector"}
#: modules of pyod.models for graphs, time series, text and sound, and for labelled data
OTHER_INPUT = ("pyg_", "ts_", "embedding", "audio_", "xgbod", "devnet", "base")
#: global random generators serve one thread at a time
_ALONE = threading.Lock()
#: images of each kind that show whether a score depends on its batch
PROBES = 8


@cache
def detectors() -> dict[str, str]:
    """Class name -> module of the detectors in pyod.models.

    Read from their source, so that none need be imported.
    """
    try:
        package = importlib.import_module("pyod.models")
    except ImportError:
        raise UserError(
            "method=pyod: PyOD is not installed; install it with: pip install 'noveltylab[pyod]'"
        ) from None
    modules: dict[str, str] = {}
    for module in pkgutil.iter_modules(package.__path__):
        if module.name.startswith(OTHER_INPUT):
            continue
        source = Path(package.__path__[0], f"{module.name}.py").read_text(encoding="utf-8")
        for node in ast.parse(source).body:
            if not isinstance(node, ast.ClassDef):
                continue
            bases = {ast.unparse(base) for base in node.bases}
            if bases & BASES:
                modules.setdefault(node.name, f"pyod.models.{module.name}")
    return modules


def find_detector(name: str) -> type[Any]:
    """The class `name` of pyod.models.

    UserError for an unknown one, or one whose own requirements are missing.
    """
    modules = detectors()
    if name not in modules:
        raise UserError(
            f"method.detector={name}: PyOD has no such detector; {nearest(name, modules)}"
        )
    try:
        return getattr(importlib.import_module(modules[name]), name)  # type: ignore[no-any-return]  # a class: see above
    except ImportError as error:
        raise UserError(
            f"method.detector={name}: it needs a package of its own ({error}); install that"
        ) from None


@contextmanager
def as_pyod_expects(seed: int) -> Iterator[None]:
    """Inside, all global random generators start from `seed` and gradients are on.

    After, everything is as before.
    """
    with isolate_rng(), torch.inference_mode(False), torch.enable_grad():
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002  # the generator that PyOD and scikit-learn draw from
        torch.manual_seed(seed)
        yield


class PyOD(Method):
    """`detector`: class name.

    `arguments`: keyword arguments of its own, PyOD's defaults where not given.

    Unless given, random_state is the run's seed, device the CPU (a GPU would not give the same
    numbers again), verbose 0, n_features the number of pixels.
    """

    iterative: ClassVar[bool] = False

    not_exportable: ClassVar[str] = (
        "the score is computed by a Python object of PyOD's, not by tensors"
    )

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        *,
        detector: str = "Sampling",
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(image_shape)
        self.detector = detector
        self.detector_class = find_detector(detector)
        self.arguments = dict(arguments or {})
        parameters = inspect.signature(self.detector_class).parameters
        kinds = {parameter.kind for parameter in parameters.values()}
        unknown = self.arguments.keys() - parameters.keys()
        if inspect.Parameter.VAR_KEYWORD not in kinds:
            for name in unknown:
                hint = nearest(name, parameters)
                raise UserError(f"method.arguments.{name}: {detector} has no such argument; {hint}")
        ours = {"device": "cpu", "verbose": 0, "n_features": math.prod(image_shape)}
        self.defaults = {name: value for name, value in ours.items() if name in parameters}
        self.takes_seed = "random_state" in parameters
        self._fitted: Any = None
        self.register_buffer("train_set", torch.zeros(0, 0))
        self.register_buffer("seed", torch.randint(2**31, ()))  # of the run, as initial weights are
        self.register_buffer("one_by_one", torch.zeros((), dtype=torch.bool))
        self.train_set: Tensor
        self.seed: Tensor
        self.one_by_one: Tensor

    def prepare(self, train: Tensor) -> None:
        """Fits the detector on train (N, C, H, W).

        Finds out whether it scores a sample by itself.
        """
        self.train_set = train.flatten(1).contiguous()
        self._fitted = None
        try:
            # mixed, as copies of training images lie on the very borders of histograms' bins
            mixed = (0.8 * self.train_set + 0.2 * self.train_set.roll(1, 0))[:PROBES]
            probes: NDArray[np.float64] = torch.cat([mixed, -mixed]).cpu().double().numpy()
            together = self._decide(probes)
            alone = np.concatenate([self._decide(probe[None]) for probe in probes])
        except UserError:
            raise
        except Exception as error:  # whatever a detector raises about its arguments or this data
            count, pixels = self.train_set.shape
            raise ValueError(
                f"method.detector={self.detector}: fails on {count} training images of {pixels} pixels: {error}"
            ) from error
        agrees = np.allclose(together, alone, rtol=1e-4, atol=1e-6, equal_nan=True)
        self.one_by_one.fill_(not agrees)
        if self.one_by_one:
            log.warning(
                f"{self.detector}'s scores depend on the batch: images are scored one by one, which may take long"
            )

    def _decide(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """PyOD's decision function of x (B, F), fitted before if need be, (B,)."""
        seed = int(self.seed)
        with _ALONE, as_pyod_expects(seed):
            if self._fitted is None:
                defaults = dict(self.defaults)
                if self.takes_seed:
                    defaults["random_state"] = seed
                detector = self.detector_class(**(defaults | self.arguments))
                self._fitted = detector.fit(self.train_set.cpu().double().numpy())
            torch.manual_seed(seed)
            scores = self._fitted.decision_function(x)
            return np.asarray(scores, float).reshape(-1)

    @property
    def score_names(self) -> tuple[str, ...]:
        return ("decision",)

    def novelty_score(self, x: Tensor) -> dict[str, Tensor]:
        """`decision`: the detector's decision function, larger is more novel, (B,).

        UserError where it is not finite.
        """
        flat = x.flatten(1).cpu().double().numpy()
        parts = np.split(flat, len(flat)) if self.one_by_one else [flat]
        decisions = np.concatenate([self._decide(part) for part in parts])
        scores = torch.from_numpy(decisions).float()
        broken = int((~scores.isfinite()).sum())
        if broken:
            raise UserError(
                f"method.detector={self.detector}: {broken} of {len(scores)} scores are not finite, "
                "as happens where pixels are constant in training; "
                "other method.arguments may help (for PCA {n_components: 32})"
            )
        return {"decision": scores.to(x.device)}

    def validation_loss(self, x: Tensor) -> Tensor:
        return self.novelty_score(x)["decision"]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name in ("train_set", "seed"):
            current: Tensor = getattr(self, name)
            saved = state_dict.get(prefix + name)
            if saved is None or not torch.equal(current.cpu(), saved.cpu()):
                self._fitted = None
        super()._load_from_state_dict(state_dict, prefix, *args)
