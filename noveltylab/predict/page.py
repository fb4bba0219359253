"""The page of `python -m noveltylab predict --html`: the most novel files first.

Beside each file stands what its score compares it with.
One file that needs no network; nothing else may load, and every text is escaped.
"""

import base64
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from noveltylab.data.decode import Unreadable, thumbnail, to_png
from noveltylab.data.layout import SUFFIXES
from noveltylab.methods.base import RECONSTRUCTION
from noveltylab.report.page import render
from noveltylab.results.files import write_atomic
from noveltylab.run.pixels import stretched
from noveltylab.run.plots_of_images import colour_errors, limits_of, overlay
from noveltylab.scoring.apply import novelty_maps, reconstruction_errors

if TYPE_CHECKING:
    from noveltylab.predict.decisions import Tally
    from noveltylab.predict.detector import Detector
    from noveltylab.predict.request import Case, Prediction, Request

HERE = Path(__file__).resolve().parents[1]
#: pixels of the longer side of a picture
SIDE = 128
#: the same where the method has maps, whose defects may be small
MAP_SIDE = 256
#: images whose maps are computed at once
BATCH = 32


def write_page(
    request: "Request", detector: "Detector", prediction: "Prediction", tally: "Tally"
) -> None:
    """Writes `request.page`.

    Args:
        request: The command line.
        detector: What scored the files.
        prediction: What was found.
        tally: What decides.
    """
    style = (HERE / "report/page.css").read_text(encoding="utf-8")
    style += (HERE / "predict/page.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    text = render(
        HERE / "predict" / "page.html.j2",
        title="Most novel first",
        lead=_lead(request, detector, prediction, tally),
        reason=prediction.reason,
        cases=_cases(detector, prediction.top, tally),
        failed=prediction.failed,
        unreadable=prediction.unreadable,
        width=side_of(detector),
        style=style,
        policy=f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'",
    )
    write_atomic(request.page, text.encode("utf-8", "backslashreplace"))


def _lead(
    request: "Request", detector: "Detector", prediction: "Prediction", tally: "Tally"
) -> list[str]:
    options = detector.options
    count = f"{prediction.files} files"
    if prediction.files > len(prediction.top):
        count += f", the {len(prediction.top)} most novel"
    lines = [f"{count}, by {detector.primary} of {options.method['name']} ({detector.folder})."]
    if prediction.novel is not None:
        decided = f"{prediction.novel} novel by {request.rule}; p-values from {tally.basis}."
        lines.append(f"{decided} {prediction.promise}")
    if prediction.top and len(prediction.top[0].images) == 1:
        rows = detector.explain(prediction.top[0].images)
        beside = ", ".join(_titles(rows))
        if RECONSTRUCTION in rows:
            if beside:
                beside += ", and "
            beside += "where its reconstruction differs, from black to white, one scale for all"
        if detector.method.gives_map:
            beside += ", and " if beside else ""
            beside += "the same with a glow where it is novel, one scale for all"
        if beside:
            lines.append(f"Right of each image: {beside}.")
    return lines


def _titles(rows: dict[str, NDArray[Any]]) -> list[str]:
    """The rows that stand beside an image; a reconstruction alone does not, its errors show it."""
    titles = list(rows)
    if titles == [RECONSTRUCTION]:
        return []
    return titles


def _cases(detector: "Detector", top: "list[Case]", tally: "Tally") -> list[dict[str, Any]]:
    beside = _beside(detector, top)
    maps = _maps(detector, top)
    limits = (0.0, 0.0) if maps is None else limits_of(maps)
    cases = []
    for position, case in enumerate(top):
        original = _original(case, detector.reader.bits, side_of(detector))
        pictures = [{"data": _encoded(to_png(original)), "alt": "image"}]
        if maps is not None:
            height, width = original.shape[:2]
            own_map = stretched(maps[position], height, width)[None]
            glowing = overlay(original.reshape(1, height, width, -1), own_map, *limits)
            pictures.append({"data": _encoded(to_png(glowing[0])), "alt": "novelty map"})
        for title, images in beside.items():
            pictures.append({"data": _encoded(to_png(images[position])), "alt": title})
        entry = {
            "name": case.name,
            "score": f"{case.score:.6g}",
            "p_value": "",
            "decision": "",
            "pictures": pictures,
        }
        group = tally.group_of(case.path)
        rank = tally.rank(case.score, group)
        if rank:
            entry["p_value"] = f"{tally.p_value(rank, group):.4g}"
            entry["decision"] = tally.word(rank, group)
        if group:
            entry["name"] = f"{case.name} ({tally.column} {group})"
        cases.append(entry)
    return cases


def side_of(detector: "Detector") -> int:
    """Pixels of the longer side of a picture on the page."""
    return MAP_SIDE if detector.method.gives_map else SIDE


def _maps(detector: "Detector", top: "list[Case]") -> NDArray[np.float32] | None:
    """How novel each pixel of the images is (N, H, W); None without maps, or for several images."""
    if not top or any(len(case.images) != 1 for case in top):
        return None
    images = torch.cat([case.images for case in top])
    return novelty_maps(detector.method, detector.preprocess, images, BATCH)


def _original(case: "Case", bits: int | None, side: int) -> NDArray[np.uint8]:
    """The file's own pixels (H, W, 3), its longer side `side`, else what the method saw of it."""
    if case.path.suffix.lower() in SUFFIXES:
        try:
            return thumbnail(case.path, side, bits)
        except Unreadable:  # gone or changed since
            pass
    middle = case.images[len(case.images) // 2].numpy()
    if middle.dtype != np.uint8:
        levels = middle.astype(np.float32) / 256 + 128
        middle = levels.clip(0, 255).astype(np.uint8)
    if len(middle) == 1:
        return np.asarray(middle[0])
    return np.ascontiguousarray(middle.transpose(1, 2, 0))


def _beside(detector: "Detector", top: "list[Case]") -> dict[str, NDArray[np.uint8]]:
    """What stands right of each image: title -> pictures (N, H, W, 3).

    {} if cases are made of several images. Last the mean absolute error over
    the channels, in colours that a scale of all of them share.
    """
    if not top or any(len(case.images) != 1 for case in top):
        return {}
    images = torch.cat([case.images for case in top])
    rows = detector.explain(images)
    beside = {}
    for title in _titles(rows):
        row = rows[title]
        colours = np.broadcast_to(row, (len(images), 3, *row.shape[2:]))
        pixels = (colours.transpose(0, 2, 3, 1) * 255).round()
        beside[title] = np.ascontiguousarray(pixels.astype(np.uint8))
    if RECONSTRUCTION in rows:
        reconstruction = rows[RECONSTRUCTION]
        errors = reconstruction_errors(detector.method, detector.preprocess, images, reconstruction)
        beside["error map"] = colour_errors(errors)
    return beside


def _encoded(content: bytes) -> str:
    return base64.b64encode(content).decode()
