"""Writes a finished run as one graph, preprocessing and score together, for use without noveltylab.

    python -m noveltylab export run=outputs/folder/ca_entropy/folder/inlier0/seed0 format=onnx
    python -m noveltylab export run=<run folder> format=torch_export output=parts.pt2

run      the folder of a finished run
format   onnx (extra [onnx]) or torch_export (torch.export.load reads it)
output   the file; default <method>.onnx or <method>.pt2

The graph takes uint8 images (batch, C, H, W) of the run's size, any batch, and gives every score by its name, float (batch,),
larger is more novel; the primary one comes first. Images of other sizes are stretched before, as noveltylab/data/decode.py
says. The decision travels along, as JSON (see `describe`): in ONNX's metadata under "noveltylab", in a .pt2 file as its extra
file "noveltylab.json". README shows how to use it. A file that export did not write is not overwritten.
Before anything is kept the file is run on images and compared with the method: scores may differ by 1e-4 of their size.
Exit codes: 0 done, 1 this method cannot be exported (says why), 2 bad input.
"""

import json
import logging
import os
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noveltylab.command.screen import console, terminal
from noveltylab.command.signals import end_command, interruptible
from noveltylab.errors import RunFailed, UserError, nearest
from noveltylab.results.files import open_regular
from noveltylab.scoring.conformal import RATES

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    from noveltylab.predict.detector import Detector

    Columns = dict[str, np.ndarray[Any, np.dtype[np.float64]]]

KEYS = ("run", "format", "output")
SUFFIXES = {"onnx": ".onnx", "torch_export": ".pt2"}
#: how far exported scores may lie from the method's, absolute below 1 and relative above
TOLERANCE = 1e-4
#: where the decision stands: ONNX's metadata, or the name of an extra file and .json
KEY = "noveltylab"
#: held-out scores that are written one by one; of more, so many quantiles
HELD_OUT = 10_000
RESIZE = (
    "stretched to size x size, the aspect ratio is not kept: bilinear, antialiased where it shrinks, rounded to uint8; colour "
    "to grey by ITU-R 601-2"
)


def export(folder: Path, form: str, output: Path | None = None) -> Path:
    """Writes the graph of a run.

    Args:
        folder: Of the run.
        form: "onnx" or "torch_export".
        output: The file; <method> with the format's suffix in the working directory if not given.

    Raises:
        UserError: No usable run, a missing extra, or an output that lies in the run's folder.
        RunFailed: The method cannot be exported; the message says why.
    """
    if form not in SUFFIXES:
        raise UserError(f"format={form}: no such format; {nearest(form, SUFFIXES)}")
    if form == "onnx":
        _need_onnx()
    from noveltylab.predict.detector import load_detector

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
        with tempfile.TemporaryDirectory() as scratch, open_atomic(output) as whole:
            path = Path(scratch) / f"graph{SUFFIXES[form]}"
            graph = Graph(detector)
            note = json.dumps(describe(detector, read_result(folder)))
            with _quiet():
                with _any_batch():
                    run = (_write_onnx if form == "onnx" else _write_torch)(
                        graph.module, graph.names, graph.example, path, note
                    )
                _compare(detector, graph.names, run)
            whole.write(path.read_bytes())
    except OSError as error:
        raise RunFailed(f"cannot write {output}: {error.strerror or error}") from None
    return output


class Graph:
    """What is exported of a detector: a module, the names of its outputs, an example of its input
    (2, C, H, W) uint8.
    """

    def __init__(self, detector: "Detector") -> None:
        import torch

        self.example = example_images(detector, 2)
        self.names = [
            detector.primary,
            *(name for name in detector.scores(self.example) if name != detector.primary),
        ]
        held = {
            name: torch.from_numpy(column).float() for name, column in detector.held_out.items()
        }
        self.module = scorer(detector, self.names, held)


def describe(detector: "Detector", result: dict[str, Any]) -> dict[str, Any]:
    """What decides beside the graph, in plain values.

    ``score`` (the name of the output that decides), ``size``, ``channels`` and ``resize`` of the
    images; ``held_out``, the scores of held-out inliers as levels (see Calibration), at most
    HELD_OUT of them, with their number ``held_out_count``: p = (1 + held_out_count * share of
    held_out >= score) / (held_out_count + 1), never too small; ``thresholds``: novel is what lies
    above, by false-positive rate, None where the held-out inliers are too few; and which run it is.
    """
    calibration = detector.calibration
    levels: list[float] = [] if calibration is None else calibration.levels.tolist()
    return {
        "run": "/".join(detector.options.folder.parts[-5:]),
        "weights_sha256": result["weights"]["sha256"],
        **{
            name: result.get(name)
            for name in ("split_sha256", "method", "data", "inlier", "inlier_name", "seed")
        },
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
        "thresholds": {
            f"{rate:g}": calibration.threshold(rate) if calibration else None for rate in RATES
        },
    }


def quantiles(rising: list[float], count: int) -> list[float]:
    """All of the numbers, or `count` of them, evenly spaced: the share that is >= s is never below
    that of all.
    """
    falling = rising[::-1]
    if len(falling) <= count:
        return falling
    return [falling[len(falling) * index // count] for index in range(count)]


def scorer(detector: "Detector", names: list[str], held: "dict[str, Tensor]") -> "nn.Module":
    """A module: uint8 (B, C, H, W) -> the scores of these names, float32 (B,) each."""
    from torch import nn

    class Scorer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.preprocess, self.method = detector.preprocess, detector.method

        def forward(self, images: "Tensor") -> "tuple[Tensor, ...]":
            columns = self.method.novelty_score(self.preprocess(images))
            if set(names) - columns.keys():
                columns |= self.method.combine_scores(
                    columns, {name: held[name] for name in columns}
                )
            return tuple(columns[name].float() for name in names)

    return Scorer().eval()


def example_images(detector: "Detector", count: int) -> "Tensor":
    """uint8 (count, C, H, W): noise, half of them smooth; always the same."""
    import torch

    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (count, *detector.shape), generator=generator, dtype=torch.uint8)
    smooth = torch.nn.functional.avg_pool2d(
        noise[: count // 2].float(), 5, 1, 2, count_include_pad=False
    )
    noise[: count // 2] = ((smooth - 128) * 4 + 128).clamp(0, 255).to(torch.uint8)
    return noise


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

            properties = onnx.load(str(path), load_external_data=False).metadata_props
            return next((entry.value for entry in properties if entry.key == KEY), None)
        with zipfile.ZipFile(path) as archive:
            name = next(
                (name for name in archive.namelist() if name.endswith(f"/{KEY}.json")), None
            )
            return None if name is None else archive.read(name).decode()
    except Exception:  # a file of another kind fails in many ways, and each means the same
        return None


def _need_onnx() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"format=onnx needs the extra [onnx] ({error}); pip install 'noveltylab[onnx]'"
        ) from None


Run = Callable[["Tensor"], list[Any]]


def _program(module: "nn.Module", example: "Tensor") -> Any:
    import torch

    with torch.no_grad():
        return torch.export.export(
            module, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},), strict=False
        )


def _write_torch(
    module: "nn.Module", names: list[str], example: "Tensor", path: Path, note: str
) -> Run:
    import torch

    torch.export.save(_program(module, example), path, extra_files={f"{KEY}.json": note})
    loaded = torch.export.load(path).module()
    return lambda images: [column.detach().numpy() for column in loaded(images)]


def _write_onnx(
    module: "nn.Module", names: list[str], example: "Tensor", path: Path, note: str
) -> Run:
    import torch

    with torch.no_grad():
        program = torch.onnx.export(
            module,
            (example,),
            input_names=["images"],
            output_names=names,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            dynamo=True,
            verbose=False,
            external_data=False,
            # it takes OLED's 1e-12 for nothing, and divides 0 by 0; onnxruntime optimises anyway
            optimize=False,
        )
    assert program is not None
    program.model.metadata_props[KEY] = note
    program.save(str(path), external_data=False)
    session = onnx_session(path)
    return lambda images: list(session.run(names, {"images": images.numpy()}))


def onnx_session(path: Path) -> Any:
    """onnxruntime's session of a file, on the CPU, with as many threads as this process may use."""
    import onnxruntime

    from noveltylab.results.provenance import cores

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = cores()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _compare(detector: "Detector", names: list[str], run: Run) -> None:
    """RunFailed unless the graph gives the method's scores, for batches of other sizes than the
    example's.
    """
    import numpy as np

    for count in (1, 40):
        images = example_images(detector, count)
        expected = detector.scores(images)
        for name, found in zip(names, run(images), strict=True):
            gap = float(
                (np.abs(found - expected[name]) / np.maximum(np.abs(expected[name]), 1)).max()
            )
            if not gap <= TOLERANCE:
                raise RunFailed(
                    f"the exported {name} is off by {gap:.2g}, more than {TOLERANCE:g}; nothing was written"
                )


@contextmanager
def _any_batch() -> "Iterator[None]":
    """Inside, torch.cdist is a formula that holds for any batch: its own code branches at 25 rows,
    which fixes the batch.
    """
    import torch

    original = torch.cdist

    def cdist(x: "Tensor", y: "Tensor", p: float = 2.0, **_: Any) -> "Tensor":
        if p != 2.0:
            return original(x, y, p)
        a, b = x.double(), y.double()
        squared = a.square().sum(1, keepdim=True) + b.square().sum(1) - 2 * a @ b.T
        return squared.clamp_min(0).sqrt().to(x.dtype)

    torch.cdist = cdist  # type: ignore[assignment]  # restored below
    try:
        yield
    finally:
        torch.cdist = original


@contextmanager
def _quiet() -> "Iterator[None]":
    """Silences what torch's exporters say about themselves; their failures become one line."""
    from contextlib import redirect_stderr, redirect_stdout
    from io import StringIO

    loggers = [
        logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")
    ]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            yield
    except (OSError, RunFailed):
        raise
    except Exception as error:  # exporters fail in many ways, and each means the same
        text = " ".join(str(error).split())[:200]
        raise RunFailed(
            f"torch cannot export this method: {type(error).__name__}: {text}"
        ) from error
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def parse(arguments: list[str]) -> tuple[Path, str, Path | None]:
    """Reads the command line: run, format, output. UserError for an unknown or missing option."""
    given: dict[str, str] = {}
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key not in KEYS or not value:
            raise UserError(
                f"{argument}: no such option; {nearest(key, [f'{name}=' for name in KEYS])}"
            )
        given[key] = value
    for key, example in (
        ("run", "outputs/folder/ca_entropy/folder/inlier0/seed0"),
        ("format", "onnx"),
    ):
        if key not in given:
            raise UserError(f"{key}= is missing; e.g. {key}={example}")
    output = Path(given["output"]).expanduser() if "output" in given else None
    return Path(given["run"]).expanduser(), given["format"], output


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
