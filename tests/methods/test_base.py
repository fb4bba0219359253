"""The loop that the base owns."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch

from noveltylab.methods.base import Batch
from tests.methods.conftest import blobs


@pytest.mark.parametrize("name", ["ocgan", "ca_entropy", "oled", "nda"])
def test_mixed_precision_sees_the_weights_as_they_are_now(
    make: Callable[..., Any], name: str
) -> None:
    """Many iterations inside one autocast end where as many autocasts of one iteration each end."""
    states = []
    for together in (True, False):
        method = make(name).train()
        method.prepare(blobs(32))
        torch.manual_seed(1)
        batch = Batch(blobs(32), torch.arange(32))
        with torch.autocast("cpu", torch.bfloat16) if together else nullcontext():
            for _ in range(3):
                with torch.autocast("cpu", torch.bfloat16):
                    method.update(batch)
        states.append(method.state_dict())
    for key, value in states[0].items():
        torch.testing.assert_close(value, states[1][key], rtol=0, atol=0, msg=key)
