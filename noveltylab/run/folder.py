"""What a run's folder says: complete, begun with other options, damaged, trained by other code.

There is no other ledger: a sweep is the folders of its cells, whoever runs them and on whichever
machine. Who holds a folder is said by its lock (lock.py); why a cell failed, by a file beside the
folders of its sweep. Neither torch nor an image is loaded here.
"""

import json
import logging
import os
import socket
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from noveltylab.command.screen import plain, say
from noveltylab.data.cache import fingerprint
from noveltylab.data.layout import find_layout
from noveltylab.errors import UserError
from noveltylab.options import DataOptions, Options, flat_options, kind_of_option
from noveltylab.results.files import read_json, sha256_file, write_atomic
from noveltylab.results.provenance import code_state
from noveltylab.results.record import read_config, read_result

log = logging.getLogger("noveltylab")


def previous(folder: Path, config: dict[str, Any], force: bool) -> dict[str, Any] | None:
    """The result of a complete run with the same options, or None if there is something to do.

    A result that is damaged, or whose files are not those it records, counts as none (see
    `set_damaged_aside`).

    Raises:
        UserError: the folder holds a run with other options; shows the difference. Or a trial
            (debug=fast) would move a run aside that is none.
    """
    if not os.path.lexists(folder / "config.yaml"):
        return None
    if force:
        _protect(folder, config.get("debug"))
        return None
    if damage(folder):
        result, recorded = None, read_config(folder)
    else:
        result = read_result(folder)
        recorded = result["config"]
    differences = option_differences(recorded, config)
    if differences:
        raise UserError(
            f"{folder} holds a run with other options ({'; '.join(differences)}). "
            "Choose another output=..., or force=true to run again (the old run is kept beside it)"
        )
    return result


def _protect(folder: Path, trial: str | None) -> None:
    """UserError if a trial would take the place of a run that is none."""
    if trial and not read_config(folder).get("debug"):
        raise UserError(
            f"{folder} holds a run that is no trial, and debug={trial} moves none aside; "
            "choose another output=..."
        )


def option_differences(recorded: dict[str, Any], config: dict[str, Any]) -> list[str]:
    """How the options of a recorded config differ from those of `config`, in words.

    Options that change no number may differ, and trainer.precision=auto goes on in the precision
    that it was given.
    """
    old, new = flat_options(recorded), flat_options(config)
    own_images = config["data"].get("classes") == "folders"
    differences = []
    for key in sorted({*old, *new}):
        before, now = old.get(key, "absent"), new.get(key, "absent")
        if key == "trainer.precision" and now == "auto":
            continue
        if before != now and kind_of_option(key, own_images) != "free":
            differences.append(f"{key}: {before} there, {now} here")
    return differences


def damage(folder: Path) -> str:
    """Why the folder's result does not count: the damaged files, "no result" without one, else ""."""
    if not os.path.lexists(folder / "result.json"):
        return "no result"
    try:
        digests = read_result(folder)["files"]
    except UserError:
        return "result.json"
    damaged_files = []
    for name, digest in digests.items():
        if not _has_digest(folder / name, digest):
            damaged_files.append(name)
    return ", ".join(damaged_files)


def _has_digest(path: Path, digest: str) -> bool:
    try:
        return sha256_file(path, within=path.parent) == digest
    except OSError:
        return False


def set_damaged_aside(folder: Path) -> None:
    """Moves a damaged result away, so that the run goes on from its checkpoints. Needs the lock.

    Raises:
        UserError: the file cannot be moved.
    """
    files = damage(folder)
    if files in ("", "no result"):
        return
    aside = folder / "result.damaged.json"
    try:
        (folder / "result.json").replace(aside)
    except OSError as error:
        raise UserError(
            f"{folder / 'result.json'}: damaged, and cannot be moved to {aside.name} "
            f"({error.strerror}); move it away"
        ) from None
    say(
        f"{folder}: {files} damaged or changed since; "
        f"{aside.name} is kept, the run is finished anew"
    )


def set_unknown_aside(folder: Path) -> None:
    """Moves a checkpoint away whose training images are unknown: its split is gone or damaged."""
    last = folder / "checkpoints" / "last.ckpt"
    if last.exists():
        damaged = last.replace(last.with_suffix(".damaged"))
        log.warning(
            f"no record of the images of {last}; kept as {damaged.name}, training starts again"
        )


def record_code(
    folder: Path, packages: Sequence[str]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Notes in code.json which code trains the run; returns this code, and what trained it before.

    `packages` are those of other people that the method and the data set are from.

    If nothing was trained yet, nothing came before. The states are as `code_state` has them.
    """
    path = folder / "code.json"
    now = code_state(packages)
    states: list[dict[str, Any]] = []
    if (folder / "checkpoints" / "last.ckpt").exists():
        try:
            states = [dict(state) for state in read_json(path)]
        except (OSError, ValueError, TypeError):
            states = [{"commit": None, "sources": None, "versions": {}}]
    if now not in states[-1:]:
        states.append(now)
        write_atomic(path, json.dumps(states, indent=1) + "\n")
    return now, [state for state in states if state != now]


def code_in_words(state: dict[str, Any]) -> str:
    """A state of the code in a few words."""
    if not state.get("sources"):
        return "a version that did not record its code"
    libraries = dict(state.get("versions", {}))
    versions = ", ".join(f"{name} {version}" for name, version in libraries.items())
    commit = state.get("commit") or "unknown"
    sources = str(state["sources"])[:12]
    return plain(f"commit {commit}, sources {sources}, {versions}")


# Files of somebody's own images.


def files_stamp(settings: DataOptions) -> str | None:
    """Changes with the name, size or time of any file of somebody's own images.

    None for published data.
    """
    if settings.classes != "folders":
        return None
    layout = find_layout(settings.root)
    paths = [path for path, *_ in layout.files()]
    return fingerprint(paths, layout.root)


def files_changed(result: dict[str, Any], settings: DataOptions) -> bool:
    """Whether any file of the images is another than when the complete run began.

    False for a run that did not record them.
    """
    recorded = result.get("data_files")
    return recorded is not None and recorded != files_stamp(settings)


# Why a cell of a sweep failed, kept in a file for whoever began the sweep.


def failure_path(options: Options) -> Path:
    """The file that keeps why a cell of a sweep failed.

    It is `<output>/.sweep/failed/<protocol>-<method>-...-seed<s>.json`.
    """
    return failure_in(Path(options.output).expanduser(), options.folder)


def failure_in(output: Path, folder: Path) -> Path:
    """The same for a run folder below an output folder."""
    name = "-".join(folder.relative_to(output).parts)
    return output / ".sweep" / "failed" / f"{name}.json"


def write_failure(options: Options, overrides: list[str], reason: str, trace: str) -> None:
    """Keeps why a cell failed, for the sweep and the report; the next success removes it."""
    failure = {
        "reason": reason,
        "folder": str(options.folder),
        "overrides": overrides,
        "host": socket.gethostname(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "traceback": trace,
    }
    write_atomic(failure_path(options), json.dumps(failure, indent=1) + "\n")


def read_failure(path: Path) -> str:
    """The one-line reason that `write_failure` kept."""
    try:
        return str(read_json(path)["reason"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{path} cannot be read: {error}"
