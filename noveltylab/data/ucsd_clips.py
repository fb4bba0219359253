"""UCSD Ped2 as stacks of consecutive whole frames, one for each frame; the files are those of ucsd.

As MemAE's code for video does (donggong1/memae-anomaly-detection): frames are resized to a square,
stacks of 16 overlap by 15, none crosses the border of a clip, and the error of a stack is that of
its 9th frame (`frames // 2` + 1 of any number of frames). The code scores the other frames of a
clip, its first 8 and last 7, not at all. Here they take part in the number of all frames with the
score of the nearest stack (CHOICE), and are left out where each clip is scaled by itself, as there.
Frames are resized bilinearly (CHOICE; theirs bicubically, then stored as JPEG).
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from noveltylab.data.cache import Arrays, cached, code_key, fingerprint
from noveltylab.data.preprocess import resize
from noveltylab.data.samples import Samples, unchecked
from noveltylab.data.ucsd import (
    absent_frames,
    decode_frame,
    files_note,
    frame_units,
    open_clips,
)
from noveltylab.data.ucsd_files import Clip
from noveltylab.errors import UserError
from noveltylab.results.provenance import cores

#: int16 steps of one grey level of a difference: 256 grey levels are 32768
STEPS = 128

#: the modules that decide what a cached entry holds
_CODE = ("data.ucsd_clips", "data.ucsd", "data.ucsd_files", "data.decode", "data.preprocess")


def read(
    root: Path | None,
    *,
    verify: bool,
    download: bool,
    cache: bool,
    size: int | None,
    frames: int,
    difference: bool,
) -> Samples:
    """Samples with images (N, T, size, size), a stack of T frames for each frame, in order of time.

    They are uint8, or int16 differences in 1/128 of a grey level. labels: of the frame, 0 normal, 1
    abnormal. facts: clip int64; own bool, whether the stack is the frame's own and not that of the
    nearest frame that has one.

    Args:
        root: The data folder.
        verify: As in `ucsd.read`.
        download: Has no effect but on the error where the files are absent.
        cache: Keep the resized frames, and read kept ones.
        size: Side in pixels after resizing; None keeps the native height and width.
        frames: T, at least 1.
        difference: Stacks of the differences of each frame to the one before.

    Raises:
        UserError: files are missing or cannot be used, or a clip is shorter than a stack.
    """
    data_set, abnormal, native_size = open_clips(root, verify, download)
    clips = [*data_set.train, *data_set.test]
    check_lengths(clips, frames, difference)

    # frames, from the cache if they are there
    files: list[Path] = []
    for clip in clips:
        files += clip.frames

    def make() -> Arrays:
        return {"frames": read_frames(files, native_size, size)}

    key: dict[str, Any] = {
        "folder": str(data_set.folder),
        "files": fingerprint(files, data_set.folder),
        "size": size,
        "code": code_key(_CODE, ("numpy", "pillow", "torch", "torchvision")),
    }
    arrays = cached("ucsd_clips", key, make) if cache else make()
    pixels = arrays["frames"]

    # stacks
    lengths = [len(clip.frames) for clip in clips]
    first, own = stack_starts(lengths, frames, int(difference))
    if difference:
        pixels = differences(pixels)
    images = torch.from_numpy(pixels[first[:, None] + np.arange(frames)])

    units = frame_units(data_set, abnormal, 1, 1)
    border = frames // 2 + int(difference), frames - 1 - frames // 2
    absent = absent_frames(len(files))
    return Samples(
        images=images,
        labels=units.labels,
        official_test=units.test,
        ids=units.ids,
        verified=unchecked(verify),
        facts={"clip": np.repeat(np.arange(len(clips)), lengths), "own": own},
        units=replace(units, border=border),
        notes=(files_note(verify, len(files), absent, native_size),),
        missing=absent,
    )


def check_lengths(clips: list[Clip], frames: int, difference: bool) -> None:
    """UserError where a clip has fewer frames than a stack needs."""
    shortest = min(clips, key=lambda clip: len(clip.frames))
    longest_stack = len(shortest.frames) - int(difference)
    if frames > longest_stack:
        length = f"{len(shortest.frames)} frames"
        if difference:
            length += f", {longest_stack} differences of them"
        raise UserError(
            f"data.frames={frames}: {shortest.name} has {length}, and a stack lies in one clip. "
            f"Use data.frames=1 to {longest_stack}."
        )


def read_frames(
    files: list[Path], native_size: tuple[int, int], size: int | None
) -> NDArray[np.uint8]:
    """The frames (n, H, W), resized to a square of `size` pixels; None keeps their size."""

    def frame(path: Path) -> NDArray[np.uint8]:
        pixels = decode_frame(path, native_size)
        if size is None:
            return pixels
        image = torch.from_numpy(pixels.copy())[None, None]
        square: NDArray[np.uint8] = resize(image, size)[0, 0].numpy()
        return square

    height, width = native_size if size is None else (size, size)
    frames = np.empty((len(files), height, width), np.uint8)
    with ThreadPoolExecutor(cores()) as pool:
        for position, pixels in enumerate(pool.map(frame, files)):
            frames[position] = pixels
    return frames


def stack_starts(
    lengths: list[int], frames: int, skipped: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Where the stack of each frame begins, and whether the frame is its middle one.

    Args:
        lengths: Frames of each clip; they lie one clip after the other.
        frames: Of a stack, not more than `lengths` less `skipped`.
        skipped: Frames at the start of a clip that are in no stack.

    Returns:
        Positions of first frames (n,), and bool (n,).
    """
    starts: list[NDArray[np.int64]] = []
    own: list[NDArray[np.bool_]] = []
    start_of_clip = 0
    for length in lengths:
        centred = np.arange(length) - frames // 2
        nearest = centred.clip(skipped, length - frames)
        starts.append(start_of_clip + nearest)
        own.append(centred == nearest)
        start_of_clip += length
    return np.concatenate(starts), np.concatenate(own)


def differences(frames: NDArray[np.uint8]) -> NDArray[np.int16]:
    """Each frame (n, H, W) less the one before, int16 in 1/128 of a grey level."""
    result = np.zeros(frames.shape, np.int16)  # of the very first frame nothing is used
    np.subtract(frames[1:], frames[:-1], out=result[1:], dtype=np.int16)
    result *= STEPS
    return result
