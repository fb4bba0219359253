"""UCSD Ped2: which clips, masks and labels a copy of the data set has (see ucsd.py for layouts)."""

import re
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from noveltylab.data.stored import Stored, find_archive, missing, names_in, unpack
from noveltylab.errors import UserError

ARCHIVE = "UCSD_Anomaly_Dataset.tar.gz"

_SUFFIXES = {".tif", ".tiff", ".jpg", ".jpeg", ".png", ".bmp"}
#: what of the archive is unpacked, and the bytes that a file, and all files of the archive, may
#: have
_MEMBERS = re.compile(
    r"(?:[^/]+/)?UCSDped2/(?:Train/Train\d{3}/|Test/Test\d{3}(?:_gt)?/|Test/UCSDped2)[^/]*"
)
_MAX_FILE, _MAX_TOTAL = 16 << 20, 8 << 30
_BY_HAND = (
    f"Put {ARCHIVE} (UCSD's Statistical Visual Computing Lab) there, unpacked or as it is, or lay "
    "out ped2/training/frames/01/000.jpg, ..., ped2/testing/frames/... and ped2.mat."
)
_ACCEPT = "Add what is missing, or accept what is there with data.verify=false."

#: first and last abnormal frame, counted from 1
Interval = tuple[int, int]


@dataclass(frozen=True)
class Clip:
    """One clip: its frames' files in order of time, and the number that each file is called by.

    name: such as "test/01".
    """

    name: str
    frames: list[Path]
    numbers: list[int]

    @property
    def number(self) -> int:
        return int(self.name.rpartition("/")[2])

    @property
    def folder(self) -> Path:
        """The folder of its frames."""
        return self.frames[0].parent


@dataclass(frozen=True)
class Ped2:
    """The data set as it lies in `folder`: clips, and the file that says which are abnormal."""

    folder: Path
    train: list[Clip]
    test: list[Clip]
    label_file: Path


# Clips.


def find(root: Path, download: bool) -> Ped2:
    """The data set below the data folder, in either layout or as the archive.

    Raises:
        UserError: it is not there, or not whole enough to be read.
    """
    data_set = _look(root)
    if data_set is not None:
        return data_set
    archive = find_archive(root, ARCHIVE)
    if archive is not None:
        data_set = _look(unpack(archive, _is_member, _MAX_FILE, _MAX_TOTAL))
        if data_set is None:
            raise UserError(f"{archive} holds no UCSDped2 with Train and Test. Replace it.")
        return data_set
    remedy = _BY_HAND
    if download:
        remedy += " Fetching it is not possible: it has no stable address."
    raise missing("UCSDped2 (or ped2)", root, remedy)


def _is_member(name: str) -> bool:
    return _MEMBERS.fullmatch(name) is not None


def _look(root: Path) -> Ped2 | None:
    """What lies below `root`, or in it where it is the set's own folder."""
    # the official layout
    folders = [root / "UCSD_Anomaly_Dataset.v1p2" / "UCSDped2", root / "UCSDped2"]
    if root.resolve().name == "UCSDped2":
        folders.append(root)
    for folder in folders:
        train, test = folder / "Train", folder / "Test"
        if train.is_dir() or test.is_dir():
            return _gather(folder, train, test, [test / "UCSDped2.m"])
    # the layout of the video papers' code
    folders = [root / "ped2"]
    if (root / "training" / "frames").is_dir() or (root / "testing" / "frames").is_dir():
        folders.append(root)
    for folder in folders:
        if folder.is_dir():
            train, test = folder / "training" / "frames", folder / "testing" / "frames"
            return _gather(folder, train, test, [folder / "UCSDped2.m", folder / "ped2.mat"])
    return None


def _gather(folder: Path, train: Path, test: Path, label_files: list[Path]) -> Ped2:
    for path in label_files:
        if path.is_file():
            return Ped2(folder, _clips(train, "train"), _clips(test, "test"), path)
    names = " or ".join([path.name for path in label_files])
    raise missing(names, label_files[0].parent, "It holds the abnormal frames.")


def _clips(folder: Path, part: str) -> list[Clip]:
    """The numbered clips below a folder that hold frames; other names are passed over."""
    folders: dict[int, Path] = {}
    for name in names_in(folder):
        match = re.fullmatch(r"(?:Train|Test)?0*([1-9]\d{0,3})", name)
        if match and (folder / name).is_dir():
            folders[int(match[1])] = folder / name
    clips = []
    for number in sorted(folders):
        frames = _frames(folders[number])
        if frames:
            clips.append(Clip(f"{part}/{number:02d}", list(frames.values()), list(frames)))
    if not clips:
        raise missing(f"{part} clips", folder, _BY_HAND)
    return clips


def _frames(folder: Path) -> dict[int, Path]:
    """Number -> file, rising; hidden files and those of other kinds are passed over."""
    paths: dict[int, Path] = {}
    for name in names_in(folder):
        path = folder / name
        is_image = path.suffix.lower() in _SUFFIXES and path.stem.isdecimal()
        if name.startswith(".") or not is_image:
            continue
        number = int(path.stem[-6:])
        if number in paths:
            raise UserError(
                f"{folder}: {paths[number].name} and {path.name} are the same frame twice."
            )
        paths[number] = path
    return dict(sorted(paths.items()))


def check_whole(folder: Path, clips: list[Clip]) -> None:
    """UserError where a clip before the last one, or a frame between two others, is missing."""
    numbers = {clip.number for clip in clips}
    last_clip = max(numbers)
    absent = sorted(set(range(1, last_clip + 1)) - numbers)
    if absent:
        part = clips[0].name.partition("/")[0]
        raise UserError(
            f"{folder}: {part} clip {absent[0]:02d} is missing or empty, while there is a clip "
            f"{last_clip:02d}. {_ACCEPT}"
        )
    for clip in clips:
        first, last = clip.numbers[0], clip.numbers[-1]
        absent = sorted(set(range(first, last + 1)) - set(clip.numbers))
        if absent:
            raise UserError(
                f"{clip.folder}: frame {absent[0]:03d} of {first:03d} to {last:03d} is missing. "
                f"{_ACCEPT}"
            )


# Masks.


def mask_files(test: list[Clip]) -> tuple[list[Path], str]:
    """The mask of every test frame, in order; [] and the reason where one of them is missing."""
    masks = {}
    for clip in test:
        folder = _mask_folder(clip)
        if folder.is_dir():
            masks[clip.folder] = _frames(folder)
    first_frame = min(1, *[clip.numbers[0] for clip in test])
    first_mask = min([1, *chain.from_iterable(masks.values())])
    files = []
    for clip in test:
        clip_masks = masks.get(clip.folder, {})
        for number in clip.numbers:
            path = clip_masks.get(number - first_frame + first_mask)
            if path is None:
                return [], (
                    f"UCSD Ped2: no mask of the abnormal pixels of {clip.name} frame {number:03d} "
                    f"in {_mask_folder(clip)}, so that patches have their frame's label alone; "
                    "the official archive has the folders Test001_gt to Test012_gt"
                )
            files.append(path)
    return files, ""


def _mask_folder(clip: Clip) -> Path:
    return clip.folder.with_name(f"{clip.folder.name}_gt")


# Labels.


def abnormal_frames(data_set: Ped2, whole: bool) -> list[NDArray[np.bool_]]:
    """Which of the frames that are there are abnormal, bool (frames,) for each test clip.

    Args:
        data_set: The clips and their label file.
        whole: No clip and no frame may be missing.
    """
    clips = [*data_set.train, *data_set.test]
    start = min(1, *(clip.numbers[0] for clip in clips))  # the video papers' code counts from 0
    clip_lengths = {clip.number: clip.numbers[-1] - start + 1 for clip in data_set.test}
    lengths = [clip_lengths.get(number, 0) for number in range(1, max(clip_lengths) + 1)]
    labels = read_labels(data_set.label_file, lengths, whole)
    return [labels[clip.number - 1][np.array(clip.numbers) - start] for clip in data_set.test]


def read_labels(path: Path, lengths: list[int], whole: bool = True) -> list[NDArray[np.bool_]]:
    """Which frames of each test clip are abnormal, from UCSDped2.m or ped2.mat.

    Args:
        path: The label file.
        lengths: Frames of each clip.
        whole: False: the last frames of a clip, and the last clips, may be missing.

    Returns:
        bool (length,) for each clip.

    Raises:
        UserError: the file is no such file, or its intervals (1-based, inclusive) do not fit the
        clips' lengths.
    """
    clip_intervals = parse_matlab(path) if path.suffix == ".m" else _load_mat(path)
    if len(clip_intervals) < len(lengths) or (whole and len(clip_intervals) > len(lengths)):
        raise UserError(
            f"{path} labels {len(clip_intervals)} clips, but there are {len(lengths)} test clips. "
            f"{_ACCEPT}"
        )
    labels = []
    for number, (intervals, length) in enumerate(zip(clip_intervals, lengths, strict=False), 1):
        abnormal = np.zeros(length, np.bool_)
        for first, last in intervals:
            if not 1 <= first <= last or (whole and last > length):
                raise UserError(
                    f"{path}: frames {first} to {last} of test clip {number:02d}, which has "
                    f"{length} frames. {_ACCEPT}"
                )
            abnormal[first - 1 : last] = True
        labels.append(abnormal)
    return labels


def parse_matlab(path: Path) -> list[list[Interval]]:
    """Intervals of each clip, from lines `TestVideoFile{end+1}.gt_frame = [61:180, 190];`."""
    try:
        text = Stored(path).read(1_000_000).decode("ascii")
    except UnicodeDecodeError:
        raise UserError(
            f"{path} is not the MATLAB text with the abnormal frames. Replace it."
        ) from None
    clips: list[list[Interval]] = []
    for content in re.findall(r"gt_frame\s*=\s*\[([^\]]*)\]", text):
        intervals = _parse_intervals(content)
        if not intervals:
            raise UserError(
                f"{path}: cannot read the frames '{content[:40]}' of test clip "
                f"{len(clips) + 1:02d}."
            )
        clips.append(intervals)
    if not clips:
        raise UserError(
            f"{path} holds no line 'TestVideoFile{{end+1}}.gt_frame = [first:last];'. Replace it."
        )
    return clips


def _parse_intervals(content: str) -> list[Interval]:
    """The intervals of a clip; none where the text is no list of intervals."""
    intervals = []
    for part in re.split(r"[,\s]+", re.sub(r"\s*:\s*", ":", content)):
        if not part:
            continue
        match = re.fullmatch(r"(\d{1,6})(?::(\d{1,6}))?", part)
        if match is None:
            return []
        intervals.append((int(match[1]), int(match[2] or match[1])))
    return intervals


def _load_mat(path: Path) -> list[list[Interval]]:
    """Intervals of each clip from ``gt``, a cell array of 2 x n matrices."""
    from scipy.io import loadmat

    try:
        cells = loadmat(path, variable_names=["gt"])["gt"].ravel()
        tables = [np.asarray(cell, np.int64).reshape(2, -1) for cell in cells]
    except Exception as error:  # a damaged file fails in many ways, and each means the same
        raise UserError(
            f"{path} does not hold the abnormal frames as the cell array 'gt' ({error}). "
            "Replace it."
        ) from None
    return [[(int(first), int(last)) for first, last in table.T] for table in tables]
