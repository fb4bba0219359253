"""UCSD Ped2: 16 training and 12 test clips of 240 x 360 grey frames, read as patches.

Each frame is cut into 8 x 12 patches of 30 x 30 pixels. Two layouts are in use: the official one
(TIFF) and the one of the video papers' code (JPEG):
    <root>/[UCSD_Anomaly_Dataset.v1p2/]UCSDped2/{Train/Train001, Test/Test001}/001.tif and
        Test/UCSDped2.m
    <root>/ped2/{training,testing}/frames/01/000.jpg and ped2.mat or UCSDped2.m
or <root> is the set's own folder. UCSD_Anomaly_Dataset.tar.gz as downloaded is unpacked into the
cache.

Beside each official test clip lie the masks of its abnormal pixels, Test/Test001_gt/001.bmp. They
label patches, for the authors of OLED score patches: a patch is abnormal where its mask has a pixel
in it (CHOICE; neither paper nor code says). Where masks are absent, patches have their frame's
label alone.
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from noveltylab.data.cache import Arrays, cached, code_key, fingerprint
from noveltylab.data.decode import FORMATS
from noveltylab.data.samples import ReadUnits, Samples, unchecked
from noveltylab.data.stored import resolve_root
from noveltylab.data.ucsd_files import Clip, Ped2, abnormal_frames, check_whole, find, mask_files
from noveltylab.errors import UserError
from noveltylab.results.provenance import cores

PATCH = 30
#: height and width of a frame, and how many frames (of them abnormal) the official clips have
FRAME = (240, 360)
TRAIN_CLIPS, TRAIN_FRAMES = 16, 2550
TEST_LENGTHS = (180, 180, 150, 180, 150, 180, 180, 180, 120, 150, 180, 180)
TEST_ABNORMAL = (120, 86, 146, 150, 129, 159, 135, 180, 120, 150, 180, 93)

#: pixels of a frame's longer side, at most
_LARGEST = 4096
#: the modules that decide what a cached entry holds
_CODE = ("data.ucsd", "data.ucsd_files", "data.decode")


def read(root: Path | None, *, verify: bool, download: bool, cache: bool) -> Samples:
    """Samples with images (N, 1, 30, 30), the patches of each frame in rows, training clips first.

    labels: of their frame, 0 normal, 1 abnormal. facts: clip int64, motion float32 (mean absolute
    difference to the frame before, in grey levels); where there are masks, masked bool (the patch
    has a pixel of its frame's mask).

    Args:
        root: The data folder.
        verify: Counts and size of the frames must be the official ones; there are no checksums.
            Without it frames and clips may be missing, and are counted.
        download: Has no effect but on the error where the files are absent.
        cache: Keep the patches, and read kept ones.

    Raises:
        UserError: files are missing or cannot be used.
    """
    data_set, abnormal, size = open_clips(root, verify, download)
    clips = [*data_set.train, *data_set.test]

    # patches, from the cache if they are there
    files: list[Path] = []
    clip_lengths: list[int] = []
    for clip in clips:
        files += clip.frames
        clip_lengths.append(len(clip.frames))
    masks, reason_without_masks = mask_files(data_set.test)

    def make() -> Arrays:
        arrays = read_patches(clips)
        if masks:
            masked = np.zeros(len(arrays["patches"]), np.bool_)
            test_masked = read_masks(masks, size)
            masked[-len(test_masked) :] = test_masked
            arrays["masked"] = masked
        return arrays

    key: dict[str, Any] = {
        "folder": str(data_set.folder),
        "files": fingerprint([*files, *masks], data_set.folder),
        "code": code_key(_CODE, ("numpy", "pillow")),
    }
    arrays = cached("ucsd", key, make) if cache else make()
    per_frame = len(arrays["patches"]) // len(files)

    # frames, and their labels
    units = frame_units(data_set, abnormal, per_frame, int(arrays["columns"]))
    clip_of_frame = np.repeat(np.arange(len(clips)), clip_lengths)
    facts = {"clip": np.repeat(clip_of_frame, per_frame), "motion": arrays["motion"]}
    absent = absent_frames(len(files))
    notes = [files_note(verify, len(files), absent, size)]
    if masks:
        facts["masked"] = arrays["masked"]
        notes += _disagreement(arrays["masked"].reshape(-1, per_frame), units.labels > 0)
    else:
        notes.append(reason_without_masks)
    return Samples(
        images=torch.from_numpy(arrays["patches"]).unsqueeze(1),
        labels=np.repeat(units.labels, per_frame),
        official_test=np.repeat(units.test, per_frame),
        ids=_patch_ids(units, per_frame),
        verified=unchecked(verify),
        facts=facts,
        units=units,
        notes=tuple(notes),
        missing=absent,
    )


def open_clips(
    root: Path | None, verify: bool, download: bool
) -> tuple[Ped2, list[NDArray[np.bool_]], tuple[int, int]]:
    """The clips of the data set, whose counts are checked if asked.

    Returns:
        The clips; which frames of each test clip are abnormal, bool (frames,); height and width of
        a frame.

    Raises:
        UserError: files are missing or cannot be used.
    """
    data_set = find(resolve_root(root), download)
    if verify:
        check_whole(data_set.folder, data_set.train)
        check_whole(data_set.folder, data_set.test)
    abnormal = abnormal_frames(data_set, verify)
    size = frame_size(data_set.train[0].frames[0])
    if verify:
        check_counts(data_set, abnormal, size)
    return data_set, abnormal, size


def frame_units(
    data_set: Ped2, abnormal: list[NDArray[np.bool_]], per_frame: int, columns: int
) -> ReadUnits:
    """The frames, training clips first, of `per_frame` patches in `columns` columns each."""
    ids: list[str] = []
    groups: list[str] = []
    for clip in [*data_set.train, *data_set.test]:
        ids += [f"{clip.name}/{frame.stem}" for frame in clip.frames]
        groups += [clip.name] * len(clip.frames)
    train_frames = len(ids) - sum(map(len, abnormal))
    train_labels = np.zeros(train_frames, np.int64)
    return ReadUnits(
        kind="frame",
        of=np.repeat(np.arange(len(ids)), per_frame),
        ids=np.array(ids),
        labels=np.concatenate([train_labels, *map(np.int64, abnormal)]),
        groups=np.array(groups),
        test=np.arange(len(ids)) >= train_frames,
        grid=(per_frame // columns, columns),
    )


def _patch_ids(units: ReadUnits, per_frame: int) -> NDArray[np.str_]:
    assert units.grid is not None
    columns = units.grid[1]
    places = [f"r{i // columns}c{i % columns:02d}" for i in range(per_frame)]
    ids: list[str] = []
    for frame in units.ids.tolist():
        ids += [f"{frame}/{place}" for place in places]
    return np.array(ids)


def absent_frames(count: int) -> int:
    """How many frames of the official set a copy of `count` frames lacks."""
    return max(0, TRAIN_FRAMES + sum(TEST_LENGTHS) - count)


def files_note(verify: bool, count: int, absent: int, size: tuple[int, int]) -> str:
    """What is known of the files instead of their checksums."""
    counts = f"{count} frames, not checked"
    if verify:
        counts = "frames, their size and labels as in the official set"
    if absent:
        counts += f", {absent} of {absent + count} missing"
    if size != FRAME:
        counts += f", {size[0]} x {size[1]} pixels in place of the original {FRAME[0]} x {FRAME[1]}"
    return f"UCSD Ped2: {counts}; no checksums were ever published"


def _disagreement(masked: NDArray[np.bool_], abnormal: NDArray[np.bool_]) -> list[str]:
    """A note if masks and labels of frames disagree.

    Args:
        masked: (frames, patches), which patches have a pixel of a mask.
        abnormal: (frames,), by their labels.
    """
    count = int((masked.any(1) != abnormal).sum())
    if not count:
        return []
    return [f"UCSD Ped2: masks and labels of {count} frames disagree; each is used as it is"]


def check_counts(data_set: Ped2, abnormal: list[NDArray[np.bool_]], size: tuple[int, int]) -> None:
    """UserError where clips, frames, labels or the size of a frame are not the official ones."""
    train_frames = sum(len(clip.frames) for clip in data_set.train)
    lengths = tuple(map(len, abnormal))
    abnormal_counts = tuple(int(labels.sum()) for labels in abnormal)
    rows: tuple[tuple[str, Any, Any], ...] = (
        ("training clips", TRAIN_CLIPS, len(data_set.train)),
        ("training frames", TRAIN_FRAMES, train_frames),
        ("frames of the test clips", TEST_LENGTHS, lengths),
        ("abnormal frames of the test clips", TEST_ABNORMAL, abnormal_counts),
        ("as height and width of a frame", FRAME, size),
    )
    for name, expected, actual in rows:
        if actual != expected:
            raise UserError(
                f"{data_set.folder}: expected {expected} {name}, found {actual}. "
                "Replace the copy, or accept it with data.verify=false."
            )


# Patches.


def read_patches(clips: list[Clip]) -> Arrays:
    """The patches of all frames, and how much each of them moves.

    Returns:
        patches uint8 (frames * patches of a frame, 30, 30), motion float32 (as many,), columns
        (patches in a row).
    """
    height, width = frame_size(clips[0].frames[0])
    if height % PATCH or width % PATCH:
        raise UserError(
            f"{clips[0].frames[0]}: {height} x {width} pixels do not divide into "
            f"{PATCH} x {PATCH} patches."
        )
    rows, columns = height // PATCH, width // PATCH
    ends = np.cumsum([len(clip.frames) for clip in clips])
    total = int(ends[-1])
    patches = np.empty((total, rows, columns, PATCH, PATCH), np.uint8)
    motion = np.zeros((total, rows, columns), np.float32)

    def fill(start: int, clip: Clip) -> None:
        previous: NDArray[np.uint8] | None = None
        for position, path in enumerate(clip.frames, start):
            frame = decode_frame(path, (height, width))
            patches[position] = unfold(frame)
            if previous is not None:
                change = np.maximum(frame, previous) - np.minimum(frame, previous)
                motion[position] = unfold(change).mean((2, 3), dtype=np.float32)
            previous = frame
        if len(clip.frames) > 1:
            motion[start] = motion[start + 1]  # nothing comes before the first frame

    starts = [0, *ends[:-1].tolist()]
    with ThreadPoolExecutor(cores()) as pool:
        list(pool.map(fill, starts, clips))
    return {
        "patches": patches.reshape(-1, PATCH, PATCH),
        "motion": motion.reshape(-1),
        "columns": np.array(columns),
    }


def read_masks(files: list[Path], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Whether each patch has a pixel of its frame's mask, (frames * patches of a frame,)."""

    def patches(path: Path) -> NDArray[np.bool_]:
        return unfold(decode_frame(path, size)).any((2, 3)).reshape(-1)

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


def frame_size(path: Path) -> tuple[int, int]:
    """Height and width of a frame, from the head of its file; UserError if it cannot be read."""
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


def decode_frame(path: Path, size: tuple[int, int]) -> NDArray[np.uint8]:
    """The grey frame (H, W); UserError if it cannot be read or is of another size."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            width, height = image.size  # from the header, before anything is decoded
            if (height, width) != size:
                raise UserError(
                    f"{path}: expected {size[0]} x {size[1]} pixels, found {height} x {width}."
                )
            return np.asarray(image.convert("L"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> UserError:
    return UserError(
        f"{path} is not a readable image ({' '.join(str(error).split())}). Replace it."
    )
