"""The W&B workspace: built and serialised without a key or the network."""

import json

import pytest

from noveltylab.report.dashboard import CURVES, PICTURES, build, main, serialise

pytest.importorskip("wandb_workspaces")


def test_it_serialises_offline_with_every_panel() -> None:
    workspace = build("me", "noveltylab")
    text = serialise(workspace)
    assert json.loads(text)
    for name in (
        "auroc",
        "floor/pca",
        "floor/knn",
        "method.value.name",
        "iteration",
        "published",
        "failed",
        "Failures",
        *CURVES,
        *PICTURES,
    ):
        assert name in text, name


def test_it_prints_and_refuses_without_a_name_or_key(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_ENTITY", raising=False)
    assert main(["--entity", "me"]) == 0
    assert json.loads(capsys.readouterr().out)
    assert main([]) == 2
    assert "--entity" in capsys.readouterr().err
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setattr("wandb.api", type("Api", (), {"api_key": None})())
    assert main(["--entity", "me", "--push"]) == 2
    assert "WANDB_API_KEY" in capsys.readouterr().err
