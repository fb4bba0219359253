"""Whatever precision a CPU is offered trains every method, resumes, and is scored in float32 as
`predict` scores.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.methods.conftest import SMALL
from tests.training.test_devices import ITERATIVE

SHORT = (
    "data=digits", "data.batch_size=16", "data.limit_train=48", "trainer.max_epochs=1", "trainer.val_every=1",
    "trainer.select_from=0", "trainer.accelerator=cpu", "trainer.average_epochs=0.5",
)  # fmt: skip


@pytest.mark.parametrize("precision", ["64-true", "bf16-mixed"])
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name == "ae" else pytest.mark.slow) for name in ITERATIVE],
)
def test_every_precision_trains_every_method(
    run_here: Callable[..., dict[str, Any]], tmp_path: Path, name: str, precision: str
) -> None:
    small = [f"method.{key}={str(value).lower()}" for key, value in SMALL.get(name, {}).items()]
    arguments = (*SHORT, f"method={name}", f"trainer.precision={precision}", *small)
    whole = run_here(*arguments)
    assert 0 <= whole["scores"][whole["primary"]]["auroc"] <= 1
    (folder,) = (path.parent for path in (tmp_path / "outputs").rglob("result.json"))
    last = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    weights = last["current_model_state"]  # beside their average, which stays in float32
    trained = {value.dtype for value in weights.values() if value.is_floating_point()}
    assert trained == {torch.float64 if precision == "64-true" else torch.float32}
    (folder / "result.json").unlink()
    assert run_here(*arguments)["scores"] == whole["scores"]
    assert torch.get_default_dtype() == torch.float32
