"""Writes a finished run as one graph, preprocessing and score together, for use without noveltylab.

    python -m noveltylab export run=outputs/folders/ca_entropy/images/inlier0/seed0 format=onnx
    python -m noveltylab export run=<run folder> format=torch_export output=parts.pt2

run      the folder of a finished run
format   onnx (extra [onnx]) or torch_export (torch.export.load reads it)
output   the file; default <method>.onnx or <method>.pt2

The graph takes uint8 images (batch, C, H, W) of the run's size, any batch, and gives every score by its name, float (batch,),
larger is more novel; the primary one comes first. Images of other sizes are stretched before, as noveltylab/data/decode.py
says. The decision travels along, as JSON (see `describe`): in ONNX's metadata under "noveltylab", in a .pt2 file as its extra
file "noveltylab.json". docs/own_images.md shows how to use it. A file that export did not write is not overwritten.
Before anything is kept the file is run on images and compared with the method: scores may differ by 1e-4 of their size.
Exit codes: 0 done, 1 this method cannot be exported (says why), 2 bad input.
"""

import json
import os
import sys
import tempfile
import zipfile
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noveltylab.command.screen import console, terminal
from noveltylab.command.signals import end_command, interruptible
from noveltylab.errors import RunFailed, UserError, nearest
from noveltylab.predict.graph import (
    KEY,
    Graph,
    any_batch,
    compare,
    silence,
    write_onnx,
    write_torch,
)
from noveltylab.results.files import open_regular
from noveltylab.results.record import require_run
from noveltylab.scoring.conformal import CONFIDENCE, RATES

if TYPE_CHECKING:
    import numpy as np

    from noveltylab.predict.detector import Detector

    Columns = dict[str, np.ndarray[Any, np.dtype[np.float64]]]

EXAMPLES = {
    "run": "outputs/folders/ca_entropy/images/inlier0/seed0",
    "format": "onnx",
    "output": "graph.onnx",
}
SUFFIXES = {"onnx": ".onnx", "torch_export": ".pt2"}
#: held-out scores that are written one by one; of more, so many quantiles
HELD_OUT = 10_000
RESIZE = (
    "stretched to size x size, the aspect ratio is not kept: bilinear, antialiased where it shrinks, rounded to uint8; colour "
    "to grey by ITU-R 601-2"
)


def export(folder: Path, form: str, output: Path | None = None) -> Path:
    """Writes the graph of a run.

    Args:
        folder: Run folder.
        form: "onnx" or "torch_export".
        output: The file; <method> with the format's suffix in the working directory if not given.

    Raises:
        UserError: No usable run, a missing extra, or an output that lies in the run's folder.
        RunFailed: The method cannot be exported; the message says why.
    """
    if form not in SUFFIXES:
        raise UserError(f"format={form}: no such format; {nearest(form, SUFFIXES)}")
    require_run(folder)
    if form == "onnx":
        _need_onnx()
    from noveltylab.predict.load import load_detector  # imports torch, which takes seconds

    detector = load_detector(folder, "cpu")
    name = str(detector.options.method["name"])
    output = output or Path(f"{Path(name).name}{SUFFIXES[form]}")
    if output.resolve().is_relative_to(folder.resolve()):
        raise UserError(
            f"output={output}: lies in the run's own folder, which is not changed; choose another place"
        )
    if output.is_dir():
        raise UserError(f"output={output}: is a folder; name a file")
    check_replaceable(output, form)
    if detector.reader.kind == "recording":
        raise RunFailed(
            f"{name}: a run on recordings takes sound, whose features are computed outside the graph"
        )
    if detector.method.not_exportable:
        raise RunFailed(f"{name} cannot be exported: {detector.method.not_exportable}")
    from noveltylab.results.files import open_atomic
    from noveltylab.results.record import read_result

    try:
        with tempfile.TemporaryDirectory() as scratch, open_atomic(output) as file:
            path = Path(scratch) / f"graph{SUFFIXES[form]}"
            graph = Graph(detector)
            note = json.dumps(describe(detector, read_result(folder)))
            write = write_onnx if form == "onnx" else write_torch
            with silence():
                with any_batch():
                    run = write(graph.module, graph.names, graph.example, path, note)
                compare(detector, graph.names, run)
            file.write(path.read_bytes())
    except OSError as error:
        raise RunFailed(f"cannot write {output}: {error.strerror or error}") from None
    return output


def describe(detector: "Detector", result: dict[str, Any]) -> dict[str, Any]:
    """What decides beside the graph, in plain values.

    ``score`` (the name of the output that decides), ``size``, ``channels`` and ``resize`` of the
    images; ``held_out``, the scores of held-out inliers as levels (see Calibration), at most
    HELD_OUT of them, with their number ``held_out_count``: p = (1 + held_out_count * share of
    held_out >= score) / (held_out_count + 1), never too small; ``thresholds``: novel is what lies
    above, by false-positive rate, None where the held-out inliers are too few;
    ``confident_thresholds``, the same with the confidence ``confidence`` that the realised rate
    is no larger; and which run it is.
    """
    calibration = detector.calibration
    levels: list[float] = []
    thresholds: dict[str, float | None] = {f"{rate:g}": None for rate in RATES}
    confident = dict(thresholds)
    if calibration is not None:
        levels = calibration.levels.tolist()
        thresholds = {f"{rate:g}": calibration.threshold(rate) for rate in RATES}
    if calibration is not None and not calibration.folds:
        confident = {f"{rate:g}": calibration.threshold(rate, CONFIDENCE) for rate in RATES}
    return {
        "run": "/".join(detector.options.folder.parts[-5:]),
        "weights_sha256": result["weights"]["sha256"],
        "split_sha256": result.get("split_sha256"),
        "method": result.get("method"),
        "data": result.get("data"),
        "inlier": result.get("inlier"),
        "inlier_name": result.get("inlier_name"),
        "seed": result.get("seed"),
        "time": result["provenance"].get("time"),
        "versions": result["provenance"].get("versions"),
        "score": detector.primary,
        "channels": detector.shape[0],
        "size": detector.shape[1],
        "resize": RESIZE,
        "exact": detector.exact,
        "folds": detector.folds,
        "held_out_count": len(levels),
        "held_out": quantiles(levels, HELD_OUT),
        "thresholds": thresholds,
        "confidence": CONFIDENCE,
        "confident_thresholds": confident,
    }


def quantiles(rising: list[float], count: int) -> list[float]:
    """All of the numbers, falling, or `count` of them, evenly spaced.

    The share that is >= s is never below that of all.
    """
    falling = rising[::-1]
    if len(falling) <= count:
        return falling
    return [falling[len(falling) * index // count] for index in range(count)]


def check_replaceable(path: Path, form: str) -> None:
    """UserError for an existing file that this command did not write: it is somebody's own."""
    if os.path.lexists(path) and _note_in(path, form) is None:
        raise UserError(
            f"output={path}: is there already and was not written by export, so it is not overwritten; choose another "
            "output= or move it away"
        )


def _note_in(path: Path, form: str) -> str | None:
    """What `describe` left in a file; None in any other."""
    try:
        open_regular(path).close()
        if form == "onnx":
            import onnx

            model = onnx.load(str(path), load_external_data=False)
            notes = [entry.value for entry in model.metadata_props if entry.key == KEY]
            return str(notes[0])
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith(f"/{KEY}.json")]
            return archive.read(names[0]).decode()
    except Exception:  # a file of another kind fails in many ways, and each means the same
        return None


def _need_onnx() -> None:
    try:
        for library in ("onnx", "onnxruntime", "onnxscript"):
            import_module(library)
    except ImportError as error:
        raise UserError(
            f"format=onnx needs the extra [onnx] ({error}); pip install 'noveltylab[onnx]'"
        ) from None


def parse(arguments: list[str]) -> tuple[Path, str, Path | None]:
    """Reads the command line: run, format, output. UserError for an unknown or missing option."""
    values: dict[str, str] = {}
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key not in EXAMPLES or not value:
            keys = [f"{name}=" for name in EXAMPLES]
            raise UserError(f"{argument}: no such option; {nearest(key, keys)}")
        values[key] = value
    for key in ("run", "format"):
        if key not in values:
            raise UserError(f"{key}= is missing; e.g. {key}={EXAMPLES[key]}")
    output = None
    if "output" in values:
        output = Path(values["output"]).expanduser()
    return Path(values["run"]).expanduser(), values["format"], output


def main(arguments: list[str]) -> int:
    if not arguments or {"-h", "--help"} & set(arguments):
        print(__doc__)
        return 0 if arguments else 2
    try:
        with interruptible():
            path = export(*parse(arguments))
    except (UserError, RunFailed, KeyboardInterrupt) as error:
        return end_command(error, "interrupted; nothing was written")
    console(soft_wrap=True).print(f"written to {path}")
    return 0


if __name__ == "__main__":
    with terminal():
        sys.exit(main(sys.argv[1:]))
