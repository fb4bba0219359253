"""The phases that a method says it has are those of its recorded options, and those that its
updates go by.
"""

from collections.abc import Callable
from typing import Any

import pytest

from noveltylab.methods.base import Method
from noveltylab.results.phases import begins, configured_phases
from tests.methods.conftest import METHODS, SMALL, method_config

OPTIONS: list[dict[str, Any]] = [
    {},
    {"use_mining": False},
    {"mining_start": 0.0},
    {"mining_start": 1.0},
    {"pretrain": 0.0},
    {"objective": "soft-boundary"},
    {"objective": "soft-boundary", "warm_up": 0.0},
    {"objective": "soft-boundary", "pretrain": 0.0, "warm_up": 0.2},
]


@pytest.mark.parametrize("name", METHODS)
def test_a_method_has_the_phases_that_its_recorded_options_say(
    name: str, make: Callable[..., Method]
) -> None:
    """For every combination in OPTIONS that the method takes."""
    config = method_config(name)
    for changes in OPTIONS:
        if changes.keys() <= config.keys():
            method = make(name, **changes)
            assert method.phases == configured_phases(
                {**config, **SMALL.get(name, {}), **changes}
            ), changes
            starts = [phase.start for phase in method.phases]
            assert starts == sorted(starts) and all(0 <= start <= 1 for start in starts)
            assert method.whole_from == (starts[-1] if starts else 0.0)
            assert not starts or starts[0] == 0


@pytest.mark.parametrize("epochs", [1, 3, 4, 10, 15, 150])
def test_phases_are_those_that_update_goes_by(make: Callable[..., Method], epochs: int) -> None:
    """Against the switches that decide what an iteration does, at the beginning of each epoch."""
    ocgan = make("ocgan", mining_start=0.7)
    soft = make("deep_svdd", objective="soft-boundary", pretrain=0.4, warm_up=0.1)
    assert isinstance(soft.warm_up, float)
    for epoch in range(1, epochs + 1):
        ocgan.progress = soft.progress = (epoch - 1) / epochs
        assert (epoch >= begins(ocgan.whole_from, epochs)) == ocgan.phase
        network, over = soft.phase  # type: ignore[misc]  # a pair, declared as Hashable
        moves = network == "encoder" and over >= soft.warm_up
        assert (epoch >= begins(soft.whole_from, epochs)) == moves
