"""Adds a diagnosis to a finished run without training: its scores under a fault of evaluation.

    python -m noveltylab diagnose run=outputs/p2/nda/mnist/inlier2/seed0
    python -m noveltylab diagnose run=<run folder> data.root=/srv/data

diagnose=batch_statistics (the only one, and the default): batch norm in training mode at test, the test set in class order, in
random order, and with inliers and outliers in separate batches. The section `diagnosis` of the run's result.json has
the AUROCs; the run's own number stays as it is. Exit codes: 0 done, 2 bad input.
"""

import sys
from pathlib import Path
from typing import Any

from noveltylab.command.arguments import read_changes
from noveltylab.command.screen import terminal
from noveltylab.command.signals import end_command, interruptible
from noveltylab.errors import RunFailed, UserError
from noveltylab.results.files import sha256_file
from noveltylab.results.record import read_result, require_run, write_result
from noveltylab.run.folder import damage
from noveltylab.run.lock import locked
from noveltylab.run.rerun import fresh_options
from noveltylab.run.summary import print_summary

KINDS = ("batch_statistics",)


def diagnose_run(folder: Path, changes: list[str]) -> dict[str, Any]:
    """Diagnoses the run in a folder and writes it into its result.json; returns the result.

    Args:
        folder: Of a finished run with its weights.
        changes: Options of the caller, such as data.root=/srv/data.

    Raises:
        UserError: No such run, its files or images are others than it records, or its method has no
        batch norm.
    """
    require_run(folder)
    damaged_files = damage(folder)
    if damaged_files:
        raise UserError(
            f"{folder}: {damaged_files} damaged or changed since the run; "
            "run it again with force=true"
        )
    result = read_result(folder)
    weights = folder / "checkpoints"
    if "weights" in result:
        weights = folder / str(result["weights"]["file"])
    if not weights.is_file():
        raise UserError(
            f"{weights}: the run's weights are not there; "
            "run it again with diagnose=batch_statistics"
        )
    if sha256_file(weights, within=folder) != result["weights"]["sha256"]:
        raise UserError(
            f"{weights}: changed since the run (its SHA-256 differs); run it again with force=true"
        )
    options, _ = fresh_options(folder, result, changes)
    # torch takes seconds: only once everything else is known to be good
    from noveltylab.run.build import build
    from noveltylab.run.read import check_same, read_images
    from noveltylab.scoring import diagnosis
    from noveltylab.training.checkpoints import load_weights

    images = read_images(options)
    check_same(folder, images)
    data, method = build(options, images.samples, images.split)
    diagnosis.check(KINDS[0], options.method["name"], method, data.test_is_outlier)
    load_weights(weights, method)
    with locked(folder):
        section = diagnosis.diagnose(method, data, options.seed, folder)
        files = {**result["files"], diagnosis.FILE: sha256_file(folder / diagnosis.FILE)}
        result = {**result, "files": files, "diagnosis": section}
        write_result(folder, result)
    return result


def parse(arguments: list[str]) -> tuple[Path, list[str]]:
    """The run's folder and the other options. UserError for anything else."""
    folders, kinds, changes = [], [], []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if equals and key == "run":
            folders.append(value)
        elif equals and key == "diagnose":
            kinds.append(value)
        else:
            changes.append(argument)
    if len(folders) != 1:
        raise UserError(
            "name one run folder: "
            "python -m noveltylab diagnose run=outputs/p2/nda/mnist/inlier2/seed0"
        )
    for kind in kinds:
        if kind not in KINDS:
            raise UserError(f"diagnose={kind}: no such diagnosis; choose from {', '.join(KINDS)}")
    read_changes(changes)
    return Path(folders[0]).expanduser(), changes


def main(arguments: list[str]) -> int:
    """Exit codes: 0 done, 1 a failure, 2 bad input, 130, 143 or 129 for signals."""
    if not arguments or {"-h", "--help"} & set(arguments):
        print(__doc__)
        return 0 if arguments else 2
    try:
        with terminal(), interruptible():
            folder, changes = parse(arguments)
            print_summary(diagnose_run(folder, changes), folder)
            return 0
    except (UserError, RunFailed, KeyboardInterrupt) as error:
        return end_command(error, "interrupted; the run is as it was")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
