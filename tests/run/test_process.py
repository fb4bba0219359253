"""The first import of torch and Lightning, and what it does to the collector of garbage."""

import gc
import sys

import pytest

from noveltylab.run.process import importing

PIPELINE = "noveltylab.run.pipeline"


@pytest.fixture
def frozen(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Grows by one whenever the collector is told to leave out what there is."""
    calls: list[bool] = []
    monkeypatch.setattr(gc, "freeze", lambda: calls.append(gc.isenabled()))
    return calls


def test_the_collector_rests_during_the_first_import_alone(
    monkeypatch: pytest.MonkeyPatch, frozen: list[bool]
) -> None:
    monkeypatch.delitem(sys.modules, PIPELINE, raising=False)
    with importing():
        assert not gc.isenabled()
    assert gc.isenabled() and len(frozen) == 1
    # a process that runs many runs keeps collecting what they leave
    monkeypatch.setitem(sys.modules, PIPELINE, sys)
    with importing():
        assert gc.isenabled()
    assert len(frozen) == 1


def test_a_failed_import_leaves_the_collector_on(
    monkeypatch: pytest.MonkeyPatch, frozen: list[bool]
) -> None:
    monkeypatch.delitem(sys.modules, PIPELINE, raising=False)
    with pytest.raises(ImportError), importing():
        raise ImportError
    assert gc.isenabled()


def test_a_collector_that_is_off_stays_off(
    monkeypatch: pytest.MonkeyPatch, frozen: list[bool]
) -> None:
    monkeypatch.delitem(sys.modules, PIPELINE, raising=False)
    gc.disable()
    try:
        with importing():
            pass
        assert not gc.isenabled() and not frozen
    finally:
        gc.enable()
