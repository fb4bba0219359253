"""Repeats a finished run from what its folder holds, and says whether it gave the same scores.

    python -m noveltylab rerun outputs/p1/pca/digits/inlier8/seed0
    python -m noveltylab rerun <run folder> data.root=/srv/data output=/scratch/reruns
    python -m noveltylab rerun experiments/results/learn/mnist.jsonl/p2/ocgan/mnist/inlier8/seed0

Before anything runs, the folder's files are compared with its checksums, and its numbers with its scores. Of its options it
decides those that make numbers. Where to write, what to fetch and whom to tell is yours: output=reruns,
data.root=, data.download=false, logger.csv=true, pictures=false, trainer.devices=1. The images of a run on somebody's own
folder lie where data.root says.

It always runs anew, in <output>/<date and time>. Exit codes: 0 the same scores, 1 others, 2 bad input.
"""

import copy
import os
import secrets
import shlex
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.text import Text

from noveltylab.command.arguments import read_changes
from noveltylab.command.screen import console, say, terminal
from noveltylab.command.signals import end_command, interruptible
from noveltylab.data.inlier import COIL_OBJECTS
from noveltylab.errors import RunFailed, UserError
from noveltylab.options import Options, check_options
from noveltylab.report.check import check_file, check_run
from noveltylab.results.archive import archive_of, find_row, read_archive
from noveltylab.results.files import sha256_file
from noveltylab.results.provenance import cores
from noveltylab.results.record import read_result, recorded_config, require_run
from noveltylab.results.scores import read_scores

#: What a folder decides: the options that make numbers. The rest is the caller's.
FROM_FOLDER = (
    "method",
    "protocol",
    "data",
    "trainer",
    "inlier",
    "seed",
    "select",
    "deterministic",
    "recipe",
)
#: Options that a folder does not decide, and what they are unless the caller says otherwise.
OF_CALLER: dict[str, Any] = {
    "output": "reruns",
    "force": False,
    "pictures": False,
    "logger": {"csv": True},
    "resources": {"num_gpus": None, "num_cpus": None},
    "data.root": None,
    "data.download": False,
    "data.cache": False,
    "trainer.devices": 1,
    "trainer.strategy": "auto",
    "trainer.checkpoint_seconds": 60.0,
}


def rerun(folder: Path, changes: list[str]) -> bool:
    """Runs the configuration in `folder` again; True if all scores are equal.

    Args:
        folder: Run folder, from anybody.
        changes: Options of the caller, such as data.root=/srv/data.

    Raises:
        UserError: The folder holds no complete run, or one whose files or numbers do not fit; or a
        bad change.
    """
    folder = folder.expanduser()
    check_is_run(folder)
    result = read_result(folder)
    options, config = fresh_options(folder, result, changes)
    say(_trust(check_files(folder, result)))
    # imports torch: only once everything else is known to be good
    from noveltylab.run.pipeline import run

    run(options, config)
    return compare(folder, options.folder, result)


def check_is_run(folder: Path) -> None:
    """Raises UserError where no finished run lies in a folder, or is kept under its name."""
    archive = archive_of(folder)
    if archive is None:
        require_run(folder, option="")
    elif find_row(folder) is None:
        runs = list(read_archive(archive).lines)
        example = f", such as {archive / runs[0]}" if runs else ""
        raise UserError(f"{folder}: no such run; {archive.name} keeps {len(runs)}{example}")


def check_files(folder: Path, result: dict[str, Any]) -> list[str]:
    """Compares a folder's files with its result, and the numbers with the files.

    Returns:
        Names of the files that were checked; without "scores.csv" if that was not kept.

    Raises:
        UserError: A file is another one than recorded, or the files give other numbers; names it.
    """
    present = [name for name in result["files"] if os.path.lexists(folder / name)]
    try:
        if len(present) == len(result["files"]):
            check_run(folder, result)
        else:
            for name in present:
                check_file(folder, name, result["files"][name])
    except UserError as error:
        raise UserError(
            f"{folder}: {error}; edited or damaged since the run, so it is not believed"
        ) from None
    return present


def _trust(present: list[str]) -> str:
    if "scores.csv" not in present:
        return (
            "its scores.csv is not kept there: the new scores are compared with its checksum, "
            "and with recorded numbers"
        )
    return (
        f"checked: {', '.join(present)} are the files that result.json records, "
        "and its numbers are those of its scores"
    )


def fresh_options(
    folder: Path, result: dict[str, Any], changes: list[str]
) -> tuple[Options, dict[str, Any]]:
    """The options of the new run, checked and as plain values.

    Its output is a folder of its own, which does not exist yet.
    """
    from omegaconf import OmegaConf

    overrides = read_changes(changes)
    recorded = recorded_config(result)
    config = own_part(recorded, result)

    def is_typed(option: str) -> bool:
        return OmegaConf.select(overrides, option) is not None

    devices = recorded["trainer"].get("devices", 1)
    if devices != 1 and not is_typed("trainer.devices"):
        raise UserError(
            f"the run was on {devices} devices, which its folder does not decide here; say "
            f"trainer.devices={devices} to use as many, or trainer.devices=1"
        )
    weights = recorded["method"].get("contrastive_from")
    if weights and not is_typed("method.contrastive_from"):
        raise UserError(
            "the run began with the weights of another file, which has to be named; it was "
            f"method.contrastive_from={shlex.quote(str(weights))}"
        )
    if config["data"].get("classes") == "folders" and not is_typed("data.root"):
        raise UserError(
            "the run is on a folder of images, which has to be named; they lay in "
            f"data.root={shlex.quote(str(recorded['data'].get('root')))}"
        )
    composed = OmegaConf.merge(OmegaConf.create(config), overrides)
    root = Path(str(composed.output)).expanduser()
    if root.resolve().is_relative_to(folder.resolve()):
        raise UserError(
            f"output={composed.output}: would write into {folder}, which is not changed; "
            "choose another"
        )
    name = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"
    composed.output = str(root / name)
    options = check_options(composed)  # type: ignore[arg-type]  # a mapping
    return options, OmegaConf.to_container(composed, resolve=True)  # type: ignore[return-value]  # by text


def own_part(recorded: dict[str, Any], result: dict[str, Any]) -> dict[str, Any]:
    """The options of a recorded configuration that make numbers; the others as in OF_CALLER."""
    repeated = {key: recorded[key] for key in FROM_FOLDER if key in recorded}
    config = copy.deepcopy(repeated)
    for key, value in OF_CALLER.items():
        group, _, name = key.rpartition(".")
        section = config[group] if group else config
        section[name] = value
    # recorded by its label, typed by its place among the twenty
    if config["data"].get("classes") == "seeded20":
        config["inlier"] = COIL_OBJECTS[recorded["inlier"] % len(COIL_OBJECTS)]
    threads = result["provenance"]["hardware"].get("threads")
    # other thread counts give other last bits
    if isinstance(threads, int) and 0 < threads <= cores():
        config["resources"] = {"num_gpus": None, "num_cpus": threads}
    return config


def compare(old: Path, new: Path, result: dict[str, Any]) -> bool:
    """Prints how the scores of two runs differ; True if they do not.

    Args:
        old: Folder of the kept run.
        new: Folder of the run that has just been made.
        result: The content of the old one's result.json.
    """
    screen = console(soft_wrap=True)
    fresh = read_result(new)
    if sha256_file(new / "scores.csv") == result["files"].get("scores.csv"):
        difference = _other_numbers(result, fresh)
        if difference:
            text = f"the same scores, but result.json records other numbers of them: {difference}"
            screen.print(Text(text, "bold red"))
            return False
        screen.print(Text.assemble(("the same scores", "bold"), f", byte for byte: {new}"))
        return True
    if (old / "scores.csv").is_file():
        is_comparable = _print_gaps(screen, old, new)
    else:  # as in an archive, which keeps its checksum alone
        _print_aurocs(screen, result, fresh)
        is_comparable = True
    if is_comparable:
        _print_changes(screen, result, fresh, new)
    return False


def _other_numbers(old: dict[str, Any], new: dict[str, Any]) -> str:
    """The first AUROC that two results of the same scores record otherwise, "" for none."""
    for name, metrics in new["scores"].items():
        if not metrics:
            continue
        recorded = old["scores"].get(name)
        if not recorded:
            return f"{name}: AUROC none, and it is {metrics['auroc']}"
        if abs(recorded["auroc"] - metrics["auroc"]) > 1e-9:
            return f"{name}: AUROC {recorded['auroc']}, and it is {metrics['auroc']}"
    return ""


def _print_gaps(screen: Console, old: Path, new: Path) -> bool:
    """By how much the scores differ; False where they are of other samples, which cannot be said."""
    old_scores, new_scores = read_scores(old / "scores.csv"), read_scores(new / "scores.csv")
    same_names = old_scores.columns.keys() == new_scores.columns.keys()
    if old_scores.ids != new_scores.ids or not same_names:
        screen.print(Text(f"other test samples or scores: compare {old} and {new}", "bold red"))
        return False
    for name, column in old_scores.columns.items():
        gap = float(np.abs(column - new_scores.columns[name]).max())
        screen.print(
            f"{name}: scores differ by up to {gap:.3g} "
            f"(their standard deviation is {column.std():.3g})"
        )
    return True


def _print_aurocs(screen: Console, old: dict[str, Any], new: dict[str, Any]) -> None:
    """The AUROC of each score in both results."""
    for name, metrics in new["scores"].items():
        recorded = old["scores"].get(name)
        if metrics and recorded:
            screen.print(
                f"{name}: AUROC {recorded['auroc']:.6f} there, {metrics['auroc']:.6f} here"
            )


def _print_changes(screen: Console, old: dict[str, Any], new: dict[str, Any], folder: Path) -> None:
    """That the scores are others, and what of versions, machine and code is."""
    before, now = old["provenance"], new["provenance"]
    changes = [key for key in ("versions", "hardware", "commit") if before.get(key) != now.get(key)]
    suffix = f"; other {', '.join(changes)}" if changes else ""
    screen.print(Text.assemble(("not the same scores", "bold red"), f": {folder}{suffix}"))


def main(arguments: list[str]) -> int:
    """Exit codes: 0 the same scores, 1 others or a failure, 2 bad input, 130, 143, 129 for signals."""
    if not arguments or {"-h", "--help"} & set(arguments):
        print(__doc__)
        return 0 if arguments else 2
    try:
        with terminal(), interruptible():
            same_scores = rerun(Path(arguments[0]), arguments[1:])
        return 0 if same_scores else 1
    except (UserError, RunFailed, KeyboardInterrupt) as error:
        return end_command(error, "interrupted; the kept run is as it was")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
