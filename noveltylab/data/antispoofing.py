"""Face anti-spoofing across two data sets: genuine videos of one set train, the test part of another is tested.

    <root>/<set>/train/<class>/<video>/<image>    and devel/ (where there is one) and test/ alike

`source` and `target` name two sets. A class folder called genuine, real or live (in any case) holds genuine videos, every
other one attacks; the videos may lie deeper (attack/print/<video>). A video is a folder of its images in any format that
`data=folder` reads: its frames, or the optical flow between them (NDA takes FlowNet2's). An image right in a class folder
is a video of one image. There are no checksums: files are what they are.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from noveltylab.data.folder import read_images
from noveltylab.data.layout import shown, walk_images
from noveltylab.data.root import missing
from noveltylab.data.samples import Samples, Units
from noveltylab.data.stored import names_in
from noveltylab.errors import UserError

GENUINE_NAMES = {"genuine", "real", "live"}
GENUINE, ATTACK = 0, 1
PARTS = ("train", "devel", "test")
_VIDEO_FILES = {".avi", ".mov", ".mp4", ".mkv"}
_LAYOUT = "Expected <set>/train/genuine/<video>/<image> and <set>/test/<class>/<video>/<image>"


@dataclass(frozen=True)
class File:
    """An image: `part` of its set, `label`, and the `video` that it belongs to, a folder or the
    image itself.
    """

    path: Path
    part: str
    label: int
    video: Path


def read(
    root: Path,
    *,
    verify: bool,
    download: bool,
    source: str | None,
    target: str | None,
    size: int | None,
    on_error: str,
    bits: int | None = None,
) -> Samples:
    """Samples with images (N, C, size, size), the source's training and development parts first,
    then the target's test part.

    labels: 0 genuine, 1 attack. facts: part ("train", "devel" or "test"), video int64. units: the
    videos. Images are grey where all genuine training images are, else colour. UserError for a
    folder that is missing, named twice, or without what it has to hold.
    """
    source_folder, target_folder = _two_sets(root, source, target)
    files = [*_files(source_folder, "train", [GENUINE])]
    if "devel" in _parts(source_folder):
        files += _files(source_folder, "devel", [])
    files += _files(target_folder, "test", [GENUINE, ATTACK])
    training = [file.path for file in files if file.part == "train" and file.label == GENUINE]
    images, positions, skipped = read_images(
        root, [file.path for file in files], training, size, bits, on_error
    )
    kept = [files[position] for position in positions]
    videos = list(dict.fromkeys(file.video for file in kept))
    numbers = {video: number for number, video in enumerate(videos)}
    first = {file.video: file for file in reversed(kept)}
    of = np.array([numbers[file.video] for file in kept], np.int64)
    names = np.array([shown(video.relative_to(root)) for video in videos])
    units = Units(
        kind="video",
        of=of,
        ids=names,
        labels=np.array([first[video].label for video in videos], np.int64),
        groups=names,
        test=np.array([first[video].part == "test" for video in videos], np.bool_),
    )
    part = np.array([file.part for file in kept])
    return Samples(
        images=images,
        labels=np.array([file.label for file in kept], np.int64),
        official_test=part == "test",
        ids=np.array([shown(file.path.relative_to(root)) for file in kept]),
        verified=None,
        facts={"part": part, "video": of},
        units=units,
        notes=tuple(skipped),
        skipped=len(files) - len(kept),
    )


def _two_sets(root: Path, source: str | None, target: str | None) -> tuple[Path, Path]:
    """The folders of both sets, which are not the same."""
    if not root.is_dir():
        raise missing("data.source and data.target", root, f"{_LAYOUT}, in folders of your own.")
    sets = [name for name in names_in(root) if (root / name).is_dir() and not name.startswith(".")]
    listed = f"{root} holds {', '.join(map(shown, sets[:8])) or 'no folders'}"
    if source is None or target is None:
        raise UserError(
            "data=antispoofing trains on data.source and tests on data.target, two folders in data.root, e.g. "
            f"data.source=casia data.target=replay; {listed}"
        )
    folders = []
    for option, name in (("data.source", source), ("data.target", target)):
        folder = root / name
        if folder.parent != root or name in ("", ".", ".."):
            raise UserError(f"{option}={name}: name a folder right in data.root={root}, not a path")
        if not folder.is_dir():
            raise UserError(f"{option}={name}: no such folder; {listed}. {_LAYOUT}")
        folders.append(folder)
    if folders[0].resolve() == folders[1].resolve():
        raise UserError(
            f"data.source={source} and data.target={target} are one folder; the error rate across sets needs two sets"
        )
    return folders[0], folders[1]


def _parts(folder: Path) -> dict[str, Path]:
    """Part -> its folder, whatever the case of its name."""
    return {name.casefold(): folder / name for name in names_in(folder) if name.casefold() in PARTS}


def _files(folder: Path, part: str, needed: list[int]) -> list[File]:
    """The images of one part of a set. UserError where the part, or one of the labels `needed`, has
    none.
    """
    where = _parts(folder).get(part)
    if where is None or not where.is_dir():
        raise UserError(f"{folder}: has no {part}/; {_LAYOUT}")
    files = list(_walk(where, part))
    for label in needed:
        if not any(file.label == label for file in files):
            raise UserError(f"{where}: {_nothing(where, label)}. {_LAYOUT}")
    return files


def _walk(where: Path, part: str) -> Iterator[File]:
    for name in names_in(where):
        class_folder = where / name
        if name.startswith(".") or not class_folder.is_dir():
            continue
        label = GENUINE if name.casefold() in GENUINE_NAMES else ATTACK
        for path in walk_images(class_folder):
            yield File(path, part, label, path if path.parent == class_folder else path.parent)


def _nothing(where: Path, label: int) -> str:
    """What is missing in a part, and what lies there in its place."""
    classes = [
        name for name in names_in(where) if (where / name).is_dir() and not name.startswith(".")
    ]
    films = [path for path in where.rglob("*") if path.suffix.lower() in _VIDEO_FILES]
    wanted = "genuine (or real, live)" if label == GENUINE else "attacks"
    here = (
        f"found the folders {', '.join(map(shown, classes[:8]))}"
        if classes
        else "it holds no folders"
    )
    if films:
        example = shown(films[0].name)
        here += f", and {len(films)} video files such as {example}, which become folders of images by ffmpeg"
    return f"no videos of {wanted}; {here}"
