"""UCSD Ped2: 16 training and 12 test clips of 240 x 360 grey frames, read as 8 x 12 patches of 30 x
30 pixels.

Two layouts are in use: the official one (TIFF) and the one of the video papers' code (JPEG):
    <root>/[UCSD_Anomaly_Dataset.v1p2/]UCSDped2/{Train/Train001, Test/Test001}/001.tif and
    Test/UCSDped2.m <root>/ped2/{training,testing}/frames/01/000.jpg and ped2.mat or UCSDped2.m
or <root> is the set's own folder. UCSD_Anomaly_Dataset.tar.gz as downloaded is unpacked into the
cache.

Beside each official test clip lie the masks of its abnormal pixels, Test/Test001_gt/001.bmp. They
label patches, for the authors of OLED score patches: a patch is abnormal where its mask has a pixel
in it (CHOICE; neither paper nor code says). Where masks are absent, patches have their frame's
label alone.
"""

import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from noveltylab.data.cache import Arrays, cached, code_key, fingerprint
from noveltylab.data.decode import FORMATS
from noveltylab.data.root import missing, resolve_root
from noveltylab.data.samples import Samples, Units
from noveltylab.data.stored import Stored, find_archive, names_in, unpack
from noveltylab.errors import UserError
from noveltylab.results.provenance import cores

PATCH = 30
#: height and width of a frame, and how many frames (of them abnormal) the official clips have
FRAME = (240, 360)
TRAIN_CLIPS, TRAIN_FRAMES = 16, 2550
TEST_LENGTHS = (180, 180, 150, 180, 150, 180, 180, 180, 120, 150, 180, 180)
TEST_ABNORMAL = (120, 86, 146, 150, 129, 159, 135, 180, 120, 150, 180, 93)

_SUFFIXES = {".tif", ".tiff", ".jpg", ".jpeg", ".png", ".bmp"}
_LARGEST = 4096
ARCHIVE = "UCSD_Anomaly_Dataset.tar.gz"
#: what of the archive is unpacked, and the bytes that a file, and all files of the archive, may
#: have
_WANTED = re.compile(
    r"(?:[^/]+/)?UCSDped2/(?:Train/Train\d{3}/|Test/Test\d{3}(?:_gt)?/|Test/UCSDped2)[^/]*"
)
_EACH, _TOTAL = 16 << 20, 8 << 30
_BY_HAND = (
    f"Put {ARCHIVE} (UCSD's Statistical Visual Computing Lab) there, unpacked or as it is, or lay out "
    "ped2/training/frames/01/000.jpg, ..., ped2/testing/frames/... and ped2.mat."
)
_ACCEPT = "Add what is missing, or accept what is there with data.verify=false."


@dataclass(frozen=True)
class Clip:
    """One clip: `name` such as "test/01", its frames' files in order of time, and the number that
    each file is called by.
    """

    name: str
    frames: list[Path]
    numbers: list[int]

    @property
    def number(self) -> int:
        return int(self.name.rpartition("/")[2])


def read(root: Path | None, *, verify: bool, download: bool, cache: bool) -> Samples:
    """Samples with images (N, 1, 30, 30), 96 patches of each frame in rows, training clips first;
    labels of their frame.

    labels: 0 normal, 1 abnormal. facts: clip int64, motion float32 (mean absolute difference to the
    frame before, in grey levels); where there are masks, masked bool (the patch has a pixel of its
    frame's mask). verify: counts and size of the frames must be the official ones; there are no
    checksums. Without it frames and clips may be missing, and are counted. UserError for unusable
    files.
    """
    root = resolve_root(root)
    folder, train, test, truth = find(root, download)
    clips = [*train, *test]
    if verify:
        _check_whole(folder, train)
        _check_whole(folder, test)
    spans = _abnormal(truth, clips, test, verify)
    size = _size(clips[0].frames[0])
    if verify:
        _check_counts(folder, train, test, spans, size)

    files = [frame for clip in clips for frame in clip.frames]
    masks, without_masks = mask_files(test)

    def make() -> Arrays:
        arrays = read_patches(clips)
        if masks:
            masked = np.zeros(len(arrays["patches"]), np.bool_)
            tested = read_masks(masks, size)
            masked[-len(tested) :] = tested
            arrays["masked"] = masked
        return arrays

    key: dict[str, Any] = {"folder": str(folder), "files": fingerprint([*files, *masks], folder)}
    key["code"] = code_key(("data.ucsd", "data.decode"), ("numpy", "pillow"))
    arrays = cached("ucsd", key, make) if cache else make()
    patches, motion = arrays["patches"], arrays["motion"]
    per_frame = len(patches) // len(files)
    lengths = [len(clip.frames) for clip in clips]
    clip_of_frame = np.repeat(np.arange(len(clips)), lengths)
    is_test = clip_of_frame >= len(train)
    frame_labels = np.concatenate(
        [np.zeros(sum(lengths[: len(train)]), np.int64), *map(np.int64, spans)]
    )
    frame_ids = np.array([f"{clip.name}/{frame.stem}" for clip in clips for frame in clip.frames])
    columns = int(arrays["columns"])
    places = [f"r{i // columns}c{i % columns:02d}" for i in range(per_frame)]
    units = Units(
        kind="frame",
        of=np.repeat(np.arange(len(files)), per_frame),
        ids=frame_ids,
        labels=frame_labels,
        groups=np.array([clip.name for clip in clips])[clip_of_frame],
        test=is_test,
        grid=(per_frame // columns, columns),
    )
    absent = max(0, TRAIN_FRAMES + sum(TEST_LENGTHS) - len(files))
    facts = {"clip": np.repeat(clip_of_frame, per_frame), "motion": motion}
    notes = [_note(verify, len(files), absent, size)]
    if masks:
        facts["masked"] = arrays["masked"]
        notes += _disagreement(arrays["masked"].reshape(-1, per_frame), frame_labels > 0)
    else:
        notes.append(without_masks)
    return Samples(
        images=torch.from_numpy(patches).unsqueeze(1),
        labels=np.repeat(frame_labels, per_frame),
        official_test=np.repeat(is_test, per_frame),
        ids=np.array([f"{frame}/{place}" for frame in frame_ids.tolist() for place in places]),
        verified=None if verify else False,
        facts=facts,
        units=units,
        notes=tuple(notes),
        missing=absent,
    )


def _note(verify: bool, count: int, absent: int, size: tuple[int, int]) -> str:
    """What is known of the files instead of their checksums."""
    counts = (
        "frames, their size and labels as in the official set"
        if verify
        else f"{count} frames, not checked"
    )
    if absent:
        counts += f", {absent} of {absent + count} missing"
    if size != FRAME:
        counts += f", {size[0]} x {size[1]} pixels in place of the original {FRAME[0]} x {FRAME[1]}"
    return f"UCSD Ped2: {counts}; no checksums were ever published"


def _disagreement(masked: NDArray[np.bool_], abnormal: NDArray[np.bool_]) -> list[str]:
    """A sentence where the masks of frames, (frames, patches), and their labels, (frames,), are not
    of one mind.
    """
    count = int((masked.any(1) != abnormal).sum())
    return (
        [f"UCSD Ped2: masks and labels of {count} frames disagree; each is used as it is"]
        if count
        else []
    )


# Files.


def find(root: Path, download: bool) -> tuple[Path, list[Clip], list[Clip], Path]:
    """The dataset's folder, training clips, test clips and label file, in either layout."""
    if found := _look(root):
        return found
    if archive := find_archive(root, ARCHIVE):
        if found := _look(
            unpack(archive, lambda name: _WANTED.fullmatch(name) is not None, _EACH, _TOTAL)
        ):
            return found
        raise UserError(f"{archive} holds no UCSDped2 with Train and Test. Replace it.")
    tried = " Fetching it is not possible: it has no stable address." if download else ""
    raise missing("UCSDped2 (or ped2)", root, _BY_HAND + tried)


def _look(root: Path) -> tuple[Path, list[Clip], list[Clip], Path] | None:
    """What lies below `root`, or in it where it is the set's own folder."""
    own = [root] if root.resolve().name == "UCSDped2" else []
    for folder in (root / "UCSD_Anomaly_Dataset.v1p2" / "UCSDped2", root / "UCSDped2", *own):
        if (folder / "Train").is_dir() or (folder / "Test").is_dir():
            return _gather(
                folder, folder / "Train", folder / "Test", [folder / "Test" / "UCSDped2.m"]
            )
    own = (
        [root]
        if (root / "training" / "frames").is_dir() or (root / "testing" / "frames").is_dir()
        else []
    )
    for folder in (root / "ped2", *own):
        if folder.is_dir():
            labels = [folder / "UCSDped2.m", folder / "ped2.mat"]
            return _gather(
                folder, folder / "training" / "frames", folder / "testing" / "frames", labels
            )
    return None


def _gather(
    folder: Path, train: Path, test: Path, labels: list[Path]
) -> tuple[Path, list[Clip], list[Clip], Path]:
    truth = next((path for path in labels if path.is_file()), None)
    if truth is None:
        raise missing(
            " or ".join(path.name for path in labels),
            labels[0].parent,
            "It holds the abnormal frames.",
        )
    return folder, _clips(train, "train"), _clips(test, "test"), truth


def _clips(folder: Path, part: str) -> list[Clip]:
    """The numbered clips below a folder that hold frames; other names and hidden files are passed
    over.
    """
    numbered: dict[int, Path] = {}
    for name in names_in(folder):
        if (match := re.fullmatch(r"(?:Train|Test)?0*([1-9]\d{0,3})", name)) and (
            folder / name
        ).is_dir():
            numbered[int(match[1])] = folder / name
    frames = {number: _frames(numbered[number]) for number in sorted(numbered)}
    clips = [
        Clip(f"{part}/{number:02d}", list(files.values()), list(files))
        for number, files in frames.items()
        if files
    ]
    if not clips:
        raise missing(f"{part} clips", folder, _BY_HAND)
    return clips


def _frames(folder: Path) -> dict[int, Path]:
    """Number -> file, rising."""
    found: dict[int, Path] = {}
    for name in names_in(folder):
        path = folder / name
        if (
            name.startswith(".")
            or path.suffix.lower() not in _SUFFIXES
            or not path.stem.isdecimal()
        ):
            continue
        number = int(path.stem[-6:])
        if number in found:
            raise UserError(
                f"{folder}: {found[number].name} and {path.name} are the same frame twice."
            )
        found[number] = path
    return dict(sorted(found.items()))


def mask_files(test: list[Clip]) -> tuple[list[Path], str]:
    """The mask of every test frame, in their order; [] and the reason where one of them is missing."""
    clips = {clip.frames[0].parent: clip for clip in test}
    masks = {
        folder: _frames(_mask_folder(folder)) for folder in clips if _mask_folder(folder).is_dir()
    }
    first_frame = min(1, *(clip.numbers[0] for clip in test))
    first_mask = min([1, *(number for numbered in masks.values() for number in numbered)])
    files = []
    for folder, clip in clips.items():
        for number in clip.numbers:
            path = masks.get(folder, {}).get(number - first_frame + first_mask)
            if path is None:
                return [], (
                    f"UCSD Ped2: no mask of the abnormal pixels of {clip.name} frame {number:03d} in "
                    f"{_mask_folder(folder)}, so that patches have their frame's label alone; the official archive has "
                    "the folders Test001_gt to Test012_gt"
                )
            files.append(path)
    return files, ""


def _mask_folder(clip: Path) -> Path:
    return clip.with_name(f"{clip.name}_gt")


def _check_whole(folder: Path, clips: list[Clip]) -> None:
    """UserError where a clip before the last one, or a frame between two others, is missing."""
    numbers = {clip.number for clip in clips}
    if absent := sorted(set(range(1, max(numbers) + 1)) - numbers):
        part = clips[0].name.partition("/")[0]
        raise UserError(
            f"{folder}: {part} clip {absent[0]:02d} is missing or empty, while there is a clip {max(numbers):02d}. {_ACCEPT}"
        )
    for clip in clips:
        first, last = clip.numbers[0], clip.numbers[-1]
        if absent := sorted(set(range(first, last + 1)) - set(clip.numbers)):
            raise UserError(
                f"{clip.frames[0].parent}: frame {absent[0]:03d} of {first:03d} to {last:03d} is missing. {_ACCEPT}"
            )


def _check_counts(
    folder: Path,
    train: list[Clip],
    test: list[Clip],
    spans: list[NDArray[np.bool_]],
    size: tuple[int, int],
) -> None:
    frames = sum(len(clip.frames) for clip in train)
    found = (
        len(train),
        frames,
        tuple(map(len, spans)),
        tuple(int(span.sum()) for span in spans),
        size,
    )
    wanted = (TRAIN_CLIPS, TRAIN_FRAMES, TEST_LENGTHS, TEST_ABNORMAL, FRAME)
    names = (
        *(
            "training clips",
            "training frames",
            "frames of the test clips",
            "abnormal frames of the test clips",
        ),
        "as height and width of a frame",
    )
    for name, here, official in zip(names, found, wanted, strict=True):
        if here != official:
            raise UserError(
                f"{folder}: expected {official} {name}, found {here}. Replace the copy, or accept it with data.verify=false."
            )


# Labels.


def _abnormal(
    truth: Path, clips: list[Clip], test: list[Clip], whole: bool
) -> list[NDArray[np.bool_]]:
    """Which of the frames that are there are abnormal, bool (frames,) for each test clip."""
    start = min(1, *(clip.numbers[0] for clip in clips))  # the video papers' code counts from 0
    lengths = {clip.number: clip.numbers[-1] - start + 1 for clip in test}
    labels = read_labels(
        truth, [lengths.get(number, 0) for number in range(1, max(lengths) + 1)], whole
    )
    return [labels[clip.number - 1][np.array(clip.numbers) - start] for clip in test]


def read_labels(path: Path, lengths: list[int], whole: bool = True) -> list[NDArray[np.bool_]]:
    """Which frames of each test clip are abnormal, bool (length,) each, from UCSDped2.m or
    ped2.mat.

    whole: False: the last frames of a clip, and the last clips, may be missing.

    Raises:
        UserError: the file is no such file, or its intervals (1-based, inclusive) do not fit the
        clips' lengths.
    """
    intervals = parse_matlab(path) if path.suffix == ".m" else _load_mat(path)
    if len(intervals) < len(lengths) or (whole and len(intervals) > len(lengths)):
        raise UserError(
            f"{path} labels {len(intervals)} clips, but there are {len(lengths)} test clips. {_ACCEPT}"
        )
    found = []
    for number, (spans, length) in enumerate(zip(intervals, lengths, strict=False), 1):
        abnormal = np.zeros(length, np.bool_)
        for first, last in spans:
            if not 1 <= first <= last or (whole and last > length):
                raise UserError(
                    f"{path}: frames {first} to {last} of test clip {number:02d}, which has {length} frames. {_ACCEPT}"
                )
            abnormal[first - 1 : last] = True
        found.append(abnormal)
    return found


def parse_matlab(path: Path) -> list[list[tuple[int, int]]]:
    """Intervals of each clip from lines such as ``TestVideoFile{end+1}.gt_frame = [61:180, 190];``."""
    try:
        text = Stored(path).read(1_000_000).decode("ascii")
    except UnicodeDecodeError:
        raise UserError(
            f"{path} is not the MATLAB text with the abnormal frames. Replace it."
        ) from None
    clips: list[list[tuple[int, int]]] = []
    for content in re.findall(r"gt_frame\s*=\s*\[([^\]]*)\]", text):
        parts = [part for part in re.split(r"[,\s]+", re.sub(r"\s*:\s*", ":", content)) if part]
        matches = [re.fullmatch(r"(\d{1,6})(?::(\d{1,6}))?", part) for part in parts]
        if not parts or None in matches:
            raise UserError(
                f"{path}: cannot read the frames '{content[:40]}' of test clip {len(clips) + 1:02d}."
            )
        clips.append([(int(match[1]), int(match[2] or match[1])) for match in matches if match])
    if not clips:
        raise UserError(
            f"{path} holds no line 'TestVideoFile{{end+1}}.gt_frame = [first:last];'. Replace it."
        )
    return clips


def _load_mat(path: Path) -> list[list[tuple[int, int]]]:
    """Intervals of each clip from ``gt``, a cell array of 2 x n matrices."""
    from scipy.io import loadmat

    try:
        cells = loadmat(path, variable_names=["gt"])["gt"].ravel()
        tables = [np.asarray(cell, np.int64).reshape(2, -1) for cell in cells]
    except Exception as error:  # a damaged file fails in many ways, and each means the same
        raise UserError(
            f"{path} does not hold the abnormal frames as the cell array 'gt' ({error}). Replace it."
        ) from None
    return [[(int(first), int(last)) for first, last in table.T] for table in tables]


# Patches.


def read_patches(clips: list[Clip]) -> Arrays:
    """patches uint8 (frames * patches of a frame, 30, 30), motion float32 (as many,), columns
    (patches in a row).
    """
    height, width = _size(clips[0].frames[0])
    if height % PATCH or width % PATCH:
        raise UserError(
            f"{clips[0].frames[0]}: {height} x {width} pixels do not divide into {PATCH} x {PATCH} patches."
        )
    rows, columns = height // PATCH, width // PATCH
    total = sum(len(clip.frames) for clip in clips)
    patches = np.empty((total, rows, columns, PATCH, PATCH), np.uint8)
    motion = np.zeros((total, rows, columns), np.float32)

    def fill(start: int, clip: Clip) -> None:
        before: NDArray[np.uint8] | None = None
        for at, path in enumerate(clip.frames, start):
            frame = _decode(path, (height, width))
            patches[at] = unfold(frame)
            if before is not None:
                change = np.maximum(frame, before) - np.minimum(frame, before)
                motion[at] = unfold(change).mean((2, 3), dtype=np.float32)
            before = frame
        if len(clip.frames) > 1:
            motion[start] = motion[start + 1]  # nothing comes before the first frame

    starts = np.cumsum([0, *(len(clip.frames) for clip in clips[:-1])]).tolist()
    with ThreadPoolExecutor(cores()) as pool:
        list(pool.map(fill, starts, clips))
    return {
        "patches": patches.reshape(-1, PATCH, PATCH),
        "motion": motion.reshape(-1),
        "columns": np.array(columns),
    }


def read_masks(files: list[Path], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Whether each patch has a pixel of its frame's mask, frame by frame, (frames * patches of a
    frame,).
    """

    def patches(path: Path) -> NDArray[np.bool_]:
        return unfold(_decode(path, size)).any((2, 3)).reshape(-1)

    with ThreadPoolExecutor(cores()) as pool:
        return np.concatenate(list(pool.map(patches, files)))


def unfold(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The non-overlapping patches of a frame (H, W), row by row: (H / 30, W / 30, 30, 30)."""
    height, width = frame.shape
    return frame.reshape(height // PATCH, PATCH, width // PATCH, PATCH).swapaxes(1, 2)


def fold(values: NDArray[np.generic]) -> NDArray[np.generic]:
    """The frame (H, W) of its patches (H / 30, W / 30, 30, 30): undoes `unfold`."""
    rows, columns = values.shape[:2]
    return values.swapaxes(1, 2).reshape(rows * PATCH, columns * PATCH)


def _size(path: Path) -> tuple[int, int]:
    try:
        with Image.open(path, formats=FORMATS) as image:
            width, height = image.size
    except (OSError, UnidentifiedImageError, ValueError, Image.DecompressionBombError) as error:
        raise _unreadable(path, error) from None
    if max(width, height) > _LARGEST:
        raise UserError(
            f"{path}: {height} x {width} pixels is no frame of Ped2 ({FRAME[0]} x {FRAME[1]})."
        )
    return height, width


def _decode(path: Path, size: tuple[int, int]) -> NDArray[np.uint8]:
    try:
        with Image.open(path, formats=FORMATS) as image:
            if (
                found := image.size[::-1]
            ) != size:  # known from the header, before anything is decoded
                raise UserError(
                    f"{path}: expected {size[0]} x {size[1]} pixels, found {found[0]} x {found[1]}."
                )
            return np.asarray(image.convert("L"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> UserError:
    return UserError(
        f"{path} is not a readable image ({' '.join(str(error).split())}). Replace it."
    )
