"""Face anti-spoofing across two data sets: one trains, the test part of another is tested.

    <root>/<set>/train/<class>/<video>/<image>    and devel/ (where there is one) and test/ alike

`source` and `target` name two sets; genuine videos of the source train. A class folder called
genuine, real or live (in any case) holds genuine videos, every other one attacks; the videos may
lie deeper (attack/print/<video>). A video is a folder of its images in any format that
`data=images` reads: its frames, or the optical flow between them (NDA takes FlowNet2's). An image
right in a class folder is a video of one image. There are no checksums: files are what they are.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from noveltylab.data.images import read_images
from noveltylab.data.layout import shown, walk_images
from noveltylab.data.samples import ReadUnits, Samples
from noveltylab.data.stored import missing, names_in
from noveltylab.errors import UserError

GENUINE_NAMES = {"genuine", "real", "live"}
GENUINE, ATTACK = 0, 1
PARTS = ("train", "devel", "test")
_VIDEO_FILES = {".avi", ".mov", ".mp4", ".mkv"}
_LAYOUT = "Expected <set>/train/genuine/<video>/<image> and <set>/test/<class>/<video>/<image>"


@dataclass(frozen=True)
class File:
    """An image of a part of its set.

    video: what it belongs to, a folder or the image itself.
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
    """Samples with images (N, C, size, size): the source's inliers, then the target's test part.

    The source's training part comes first, then its development part. labels: 0 genuine, 1 attack.
    facts: part ("train", "devel" or "test"), video int64. units: the videos. Images are grey where
    all genuine training images are, else colour. UserError for a folder that is missing, named
    twice, or without what it has to hold.
    """
    source_folder, target_folder = _two_sets(root, source, target)
    files = [*_files(source_folder, "train", [GENUINE])]
    if "devel" in _parts(source_folder):
        files += _files(source_folder, "devel", [])
    files += _files(target_folder, "test", [GENUINE, ATTACK])
    paths = [file.path for file in files]
    training = [file.path for file in files if file.part == "train" and file.label == GENUINE]
    images, positions, notes = read_images(root, paths, training, size, bits, on_error)
    # of each image
    ids: list[str] = []
    labels: list[int] = []
    parts: list[str] = []
    videos: list[int] = []
    # of each video, in order of their first images
    numbers: dict[Path, int] = {}
    video_names: list[str] = []
    video_labels: list[int] = []
    is_test_video: list[bool] = []
    for position in positions:
        file = files[position]
        if file.video not in numbers:
            numbers[file.video] = len(numbers)
            video_names.append(shown(file.video.relative_to(root).as_posix()))
            video_labels.append(file.label)
            is_test_video.append(file.part == "test")
        ids.append(shown(file.path.relative_to(root).as_posix()))
        labels.append(file.label)
        parts.append(file.part)
        videos.append(numbers[file.video])
    part, video, names = np.array(parts), np.array(videos, np.int64), np.array(video_names)
    units = ReadUnits(
        kind="video",
        of=video,
        ids=names,
        labels=np.array(video_labels, np.int64),
        groups=names,
        test=np.array(is_test_video, np.bool_),
    )
    return Samples(
        images=images,
        labels=np.array(labels, np.int64),
        official_test=part == "test",
        ids=np.array(ids),
        verified=None,
        facts={"part": part, "video": video},
        units=units,
        notes=tuple(notes),
        skipped=len(files) - len(positions),
    )


def _two_sets(root: Path, source: str | None, target: str | None) -> tuple[Path, Path]:
    """The folders of both sets, which are not the same."""
    if not root.is_dir():
        raise missing("data.source and data.target", root, f"{_LAYOUT}, in folders of your own.")
    names = ", ".join(map(shown, _folders(root)[:8]))
    listing = f"{root} holds {names or 'no folders'}"
    if source is None or target is None:
        raise UserError(
            "data=antispoofing trains on data.source and tests on data.target, two folders in "
            f"data.root, e.g. data.source=casia data.target=replay; {listing}"
        )
    folders = []
    for option, name in (("data.source", source), ("data.target", target)):
        folder = root / name
        if folder.parent != root or name in ("", ".", ".."):
            raise UserError(f"{option}={name}: name a folder right in data.root={root}, not a path")
        if not folder.is_dir():
            raise UserError(f"{option}={name}: no such folder; {listing}. {_LAYOUT}")
        folders.append(folder)
    if folders[0].resolve() == folders[1].resolve():
        raise UserError(
            f"data.source={source} and data.target={target} are one folder; "
            "the error rate across sets needs two sets"
        )
    return folders[0], folders[1]


def _parts(folder: Path) -> dict[str, Path]:
    """Part -> its folder, whatever the case of its name."""
    return {name.casefold(): folder / name for name in names_in(folder) if name.casefold() in PARTS}


def _folders(parent: Path) -> list[str]:
    """The names of the folders in a folder, without hidden ones."""
    return [name for name in names_in(parent) if name[0] != "." and (parent / name).is_dir()]


def _files(folder: Path, part: str, needed: list[int]) -> list[File]:
    """The images of one part of a set; UserError if it, or one of the labels `needed`, has none."""
    part_folder = _parts(folder).get(part)
    if part_folder is None or not part_folder.is_dir():
        raise UserError(f"{folder}: has no {part}/; {_LAYOUT}")
    files = list(_walk(part_folder, part))
    labels = {file.label for file in files}
    for label in needed:
        if label not in labels:
            raise UserError(f"{part_folder}: {_nothing(part_folder, label)}. {_LAYOUT}")
    return files


def _walk(part_folder: Path, part: str) -> Iterator[File]:
    for name in _folders(part_folder):
        class_folder = part_folder / name
        label = GENUINE if name.casefold() in GENUINE_NAMES else ATTACK
        for path in walk_images(class_folder):
            video = path if path.parent == class_folder else path.parent
            yield File(path, part, label, video)


def _nothing(part_folder: Path, label: int) -> str:
    """What is missing in a part, and what lies there in its place."""
    kind = "attacks"
    if label == GENUINE:
        kind = "genuine (or real, live)"
    contents = "it holds no folders"
    names = _folders(part_folder)
    if names:
        contents = f"found the folders {', '.join(map(shown, names[:8]))}"
    films = [path for path in part_folder.rglob("*") if path.suffix.lower() in _VIDEO_FILES]
    if films:
        contents += (
            f", and {len(films)} video files such as {shown(films[0].name)}, "
            "which become folders of images by ffmpeg"
        )
    return f"no videos of {kind}; {contents}"
