"""The W&B workspace as code: method x class AUROC, against published numbers and floors, curves, pictures, failures.

    python -m noveltylab dashboard --entity me --project noveltylab            # prints it as JSON, needs no key
    python -m noveltylab dashboard --entity me --project noveltylab --push     # saves it in the project

Runs logged offline, however many, are sent first: find outputs -type d -name 'offline-run-*' -exec wandb sync --yes {} +
"""

import argparse
import importlib
import os
import sys
import warnings
from typing import Any

from noveltylab.command.screen import say_error, show, terminal
from noveltylab.errors import UserError

#: losses that methods log under these names, all on the axis of iterations
CURVES = ("val/loss", "train/mse")
PICTURES = ("roc", "scores", "cases", "embedding")


def build(entity: str, project: str) -> Any:
    """The workspace, a wandb_workspaces Workspace that has not been saved.

    Raises:
        UserError: the extra is not installed.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of the package's own use of pydantic
        try:
            panels: Any = importlib.import_module("wandb_workspaces.reports.v2")
            workspaces: Any = importlib.import_module("wandb_workspaces.workspaces")
        except ImportError:
            raise UserError(
                "the dashboard needs wandb-workspaces: pip install 'noveltylab[dashboard]'"
            ) from None
        return _workspace(panels, workspaces, entity, project)


def _workspace(panels: Any, workspaces: Any, entity: str, project: str) -> Any:
    method, inlier = panels.Config("method.name"), panels.Config("inlier")
    results = [
        panels.BarPlot(
            title="AUROC by method, mean over runs",
            metrics=["auroc"],
            groupby=method,
            groupby_aggfunc="mean",
        ),
        panels.BarPlot(
            title="AUROC by class, mean over runs",
            metrics=["auroc"],
            groupby=inlier,
            groupby_aggfunc="mean",
        ),
        panels.BarPlot(
            title="floors, mean over runs",
            metrics=["floor/pca", "floor/knn"],
            groupby=inlier,
            groupby_aggfunc="mean",
        ),
        panels.BarPlot(
            title="published and ours, of the runs that a paper prints",
            metrics=["published", "auroc"],
            groupby=method,
            groupby_aggfunc="mean",
        ),
        panels.ScatterPlot(
            title="ours against published", x=panels.SummaryMetric("published"), y="auroc"
        ),
        panels.ScatterPlot(
            title="AUROC against the PCA floor", x=panels.SummaryMetric("floor/pca"), y="auroc"
        ),
    ]
    curves = [
        panels.LinePlot(title=name, x="iteration", y=[name], groupby=method) for name in CURVES
    ]
    failures = [
        panels.BarPlot(
            title="failed runs", metrics=["failed"], groupby=method, groupby_aggfunc="sum"
        )
    ]
    doubts = [
        panels.RunComparer(diff_only="split"),
        panels.ScatterPlot(title="seconds and AUROC", x=panels.SummaryMetric("seconds"), y="auroc"),
    ]
    return workspaces.Workspace(
        entity=entity,
        project=project,
        name="noveltylab",
        sections=[
            workspaces.Section(name="Results", panels=results, is_open=True),
            workspaces.Section(name="Training", panels=curves, is_open=True),
            workspaces.Section(
                name="Pictures",
                panels=[panels.MediaBrowser(media_keys=list(PICTURES))],
                is_open=True,
            ),
            workspaces.Section(name="Failures", panels=failures, is_open=True),
            workspaces.Section(name="Runs and their differences", panels=doubts),
        ],
        runset_settings=workspaces.RunsetSettings(
            groupby=[workspaces.Config("method.name"), workspaces.Config("data.name")]
        ),
    )


def serialise(workspace: Any) -> str:
    """The workspace as the JSON that would be sent."""
    # the package has no public way to do this offline
    return str(workspace._to_model().model_dump_json(by_alias=True))


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m noveltylab dashboard",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--entity",
        default=os.environ.get("WANDB_ENTITY"),
        help="the user or team (default $WANDB_ENTITY)",
    )
    parser.add_argument(
        "--project", default="noveltylab", help="as logger.project (default noveltylab)"
    )
    parser.add_argument("--push", action="store_true", help="save it; needs a key")
    options = parser.parse_args(arguments)
    try:
        if not options.entity:
            raise UserError("whose project? give --entity NAME or set WANDB_ENTITY")
        workspace = build(options.entity, options.project)
        if not options.push:
            show(serialise(workspace), sys.stdout)
            return 0
        import wandb

        if not wandb.api.api_key:
            raise UserError("--push needs a W&B key: run `wandb login`, or set WANDB_API_KEY")
        show(workspace.save().url, sys.stdout)
    except UserError as error:
        say_error(error)
        return 2
    return 0


if __name__ == "__main__":
    with terminal():
        sys.exit(main(sys.argv[1:]))
