"""DCASE 2017 task 2 (TUT Rare Sound Events 2017): recordings of one scene, cut into segments.

Two archives lie side by side as published; <tag> is a hash of the mixing parameters:
    <root>/TUT-rare-sound-events-2017-development/data/mixture_data/
        {devtrain,devtest}/<tag>/{audio,meta}
    <root>/TUT-rare-sound-events-2017-evaluation/data/mixture_data/evaltest/<tag>/{audio,meta}
or their zip archives as downloaded lie there, which are read in place. For each kind of event, meta
lists the mixtures with the times of their events, and has the recipes that they were mixed by: only
these know a mixture's scene. Of the 41 GB of audio, one scene's files are read. data=dcase gives
log-mel images, data=dcase_waveform the segments of 4,096 samples of the reference protocol (Rushe
and Mac Namee, ICASSP 2019).
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from noveltylab.data.cache import Arrays, cached, code_key, fingerprint
from noveltylab.data.dcase_files import (
    ACCEPT,
    DEVELOPMENT,
    EVALUATION,
    PARTS,
    Part,
    check_backgrounds,
    read_part,
)
from noveltylab.data.dcase_meta import SCENES, Mixture, Span
from noveltylab.data.dcase_sound import (
    BANDS,
    FRAMES,
    HOP,
    RATE,
    SEGMENTERS,
    WINDOW,
    Segmenter,
    read_segments,
)
from noveltylab.data.samples import ReadUnits, Samples, unchecked
from noveltylab.data.stored import Stored, resolve_root
from noveltylab.errors import UserError, nearest

#: mixtures in each official part, and their seconds
MIXTURES, SECONDS = 1500, 30

#: the modules that decide what a cached entry holds
_CODE = ("data.dcase", "data.dcase_files", "data.dcase_meta", "data.dcase_sound")


def read(
    root: Path | None, *, verify: bool, download: bool, features: str, inlier: int, cache: bool
) -> Samples:
    """Samples of the scene SCENES[inlier]: images (N, 1, 64, 64), devtrain first.

    Each recording's segments are in order. labels: the scene's, or 15 + its kind for a segment that
    an event overlaps. facts: part ("devtrain", ...), start of the segment and onset and offset of
    its recording's event in seconds (NaN without). units: the recordings.

    Args:
        root: The data folder.
        verify: No file of the scene may be missing, and counts other than the official ones are
            noted; there are no checksums. Without it missing files, and kinds of events without
            meta files, are counted.
        download: Has no effect.
        features: "logmel": uint8 images of 64 mel bands (rows, the lowest first) and 64 frames
            (0.74 s), in decibels, scaled so that 0 and 255 are the extremes of devtrain's
            event-free segments; others are clipped to these. "waveform": int16, 4,096 samples
            (93 ms) as 64 rows of 64 (our choice, so that a wave passes where images do); 32768 is
            full scale.
        inlier: The scene.
        cache: Keep the segments, and read kept ones.

    Raises:
        UserError: files are missing or cannot be used.
    """
    if features not in SEGMENTERS:
        raise UserError(
            f"data.features cannot be '{features}': {nearest(str(features), SEGMENTERS)}"
        )
    segmenter = SEGMENTERS[features]
    root = resolve_root(root)
    if root.name in (DEVELOPMENT, EVALUATION):  # data.root is one of the set's own folders
        root = root.parent

    # which recordings
    parts = {name: read_part(root, name, verify) for name in PARTS}
    check_backgrounds(parts.values())
    mixtures = _mixtures_of(root, parts, inlier)
    absent = _check_missing(parts, mixtures, inlier, verify)
    present: list[Mixture] = []
    files: list[Stored] = []
    for mixture in mixtures:
        file = parts[mixture.part].present.get(mixture.name)
        if file is not None:
            present.append(mixture)
            files.append(file)
    notes = _notes_on_copy(parts, inlier, absent, len(present), verify)

    # their segments
    def make() -> Arrays:
        return read_segments(files, present, features)

    sources: list[Stored] = []
    for part in parts.values():
        sources += part.meta
    sources += files
    key = {
        "code": code_key(_CODE, ("numpy", "librosa", "soundfile")),
        "features": features,
        "scene": SCENES[inlier],
        "cut": [segmenter.length, segmenter.step],
        "mel": [RATE, WINDOW, HOP, BANDS, FRAMES],
        "files": _fingerprint(sources, root),
    }
    arrays = cached("dcase", key, make) if cache else make()
    notes += _notes_on_sound(arrays, segmenter)
    samples = _assemble(present, segmenter, arrays, notes)
    return replace(samples, verified=unchecked(verify), missing=absent)


def _fingerprint(files: list[Stored], root: Path) -> str:
    """As `fingerprint`; of files in archives by these, and by their names."""
    members = [file.member for file in files if file.member]
    paths = list(dict.fromkeys([file.path for file in files]))
    print_of_paths = fingerprint(paths, root)
    if not members:
        return print_of_paths
    return hashlib.sha256("\n".join([print_of_paths, *members]).encode()).hexdigest()


def _mixtures_of(root: Path, parts: Mapping[str, Part], scene: int) -> list[Mixture]:
    """The scene's mixtures, by part and kind, also those whose recording is missing.

    Raises:
        UserError: no recording of the scene is there, or a part has none.
    """
    scenes = _scenes_in(parts)
    if scene not in scenes:
        names = ", ".join([SCENES[label] for label in sorted(scenes)]) or "none"
        raise UserError(
            f"{root} holds no recording of the scene {SCENES[scene]}; scenes found: {names}."
        )
    mixtures = []
    for part in parts.values():
        part_mixtures = [m for m in part.mixtures if m.scene == scene]
        if not part_mixtures:
            raise UserError(
                f"{root} holds no recording of the scene {SCENES[scene]} in {part.name}, "
                "only in others."
            )
        mixtures += part_mixtures
    return mixtures


def _scenes_in(parts: Mapping[str, Part]) -> set[int]:
    """The scenes of which there is a recording."""
    scenes: set[int] = set()
    for part in parts.values():
        for mixture in part.mixtures:
            if mixture.name in part.present:
                scenes.add(mixture.scene)
    return scenes


def _check_missing(
    parts: Mapping[str, Part], mixtures: list[Mixture], scene: int, verify: bool
) -> int:
    """How many recordings are missing.

    Raises:
        UserError: one is and `verify`, or all recordings of a part are.
    """
    total = 0
    for part in parts.values():
        names = {m.name for m in mixtures if m.part == part.name}
        absent = sorted(names - part.present.keys())
        all_absent = len(absent) == len(names)
        if absent and (verify or all_absent):
            accept = "." if all_absent else f", or {ACCEPT}"
            raise UserError(
                f"{part.place}: {len(absent)} of the {len(names)} files of the scene "
                f"{SCENES[scene]} are missing, the first is {absent[0]}. Add them{accept}"
            )
        total += len(absent)
    return total


def _notes_on_copy(
    parts: Mapping[str, Part], scene: int, absent: int, present: int, verify: bool
) -> list[str]:
    """Notes on what the copy lacks, from its numbers of absent and present recordings."""
    notes = []
    if absent:
        notes.append(f"recordings of the scene missing: {absent} of {absent + present}")
    lost: list[str] = []
    faulty = 0
    counts: dict[str, int] = {}
    for part in parts.values():
        lost += [f"{kind} in {part.name}" for kind in part.lost]
        faulty += [mixture.scene for mixture in part.withdrawn].count(scene)
        counts[part.name] = len(part.mixtures) + len(part.withdrawn)
    if lost:
        notes.append(f"events without meta files, left out: {', '.join(lost)}")
    if verify and set(counts.values()) != {MIXTURES}:
        listing = ", ".join(f"{count:,} in {part}" for part, count in counts.items())
        notes.append(
            f"not the whole set: {MIXTURES:,} mixtures expected in each part, found {listing}"
        )
    scenes = _scenes_in(parts)
    silent_scenes = [name for label, name in enumerate(SCENES) if label not in scenes]
    if silent_scenes:
        notes.append(f"scenes without recordings in the data: {', '.join(silent_scenes)}")
    if faulty:
        notes.append(f"faulty recordings of the scene left out: {faulty}")
    return notes


def _notes_on_sound(arrays: Arrays, segmenter: Segmenter) -> list[str]:
    """Notes on what the recordings are like and what was done to them."""
    frames, rates, channels = arrays["frames"], arrays["rates"], arrays["channels"]
    notes = []
    is_resampled = rates != RATE
    if is_resampled.any():
        listing = ", ".join(f"{rate / 1000:g}" for rate in np.unique(rates[is_resampled]).tolist())
        notes.append(f"{int(is_resampled.sum())} files resampled to 44.1 kHz from {listing} kHz")
    with_channels = int((channels > 1).sum())
    if with_channels:
        notes.append(
            f"{with_channels} files with more than one channel: the mean of the channels is used"
        )
    seconds = frames / rates
    odd_lengths = int((np.abs(seconds - SECONDS) > 0.5).sum())
    if odd_lengths:
        notes.append(
            f"{odd_lengths} files do not last {SECONDS} s "
            f"({seconds.min():.3g} to {seconds.max():.3g} s)"
        )
    remainder = float((seconds - arrays["counts"] * segmenter.step / RATE).max())
    if remainder >= 1 / RATE:
        notes.append(
            f"up to {remainder:.2g} s at the end of a file make no whole segment and are left out"
        )
    return notes


def _assemble(
    mixtures: list[Mixture], segmenter: Segmenter, arrays: Arrays, notes: list[str]
) -> Samples:
    counts = arrays["counts"].tolist()
    # of each recording
    stems: list[str] = []
    recording_labels: list[int] = []
    recording_parts: list[str] = []
    recording_spans: list[Span] = []
    # of each segment
    ids: list[str] = []
    numbers: list[int] = []
    has_event = []
    for mixture, count in zip(mixtures, counts, strict=True):
        stem = mixture.name.removesuffix(".wav")
        stems.append(stem)
        recording_labels.append(mixture.label)
        recording_parts.append(mixture.part)
        recording_spans.append(mixture.span or (math.nan, math.nan))
        ids += [f"{mixture.part}/{stem}/{number:04d}" for number in range(count)]
        numbers += range(count)
        has_event.append(segmenter.positive(count, mixture.span))
    labels, parts, spans = (
        np.array(recording_labels, np.int64),
        np.array(recording_parts),
        np.array(recording_spans),
    )
    recordings = np.repeat(np.arange(len(mixtures)), counts)
    facts: dict[str, NDArray[Any]] = {
        "part": parts[recordings],
        "start": np.array(numbers) * segmenter.step / RATE,
        "onset": spans[recordings, 0],
        "offset": spans[recordings, 1],
    }
    names = np.array(stems)
    low, high = arrays["scale"].tolist()
    return Samples(
        images=torch.from_numpy(arrays["images"]),
        labels=np.where(np.concatenate(has_event), labels[recordings], mixtures[0].scene),
        official_test=parts[recordings] == "evaltest",
        ids=np.array(ids),
        verified=False,
        facts=facts,
        units=ReadUnits("file", recordings, names, labels, names, test=parts == "evaltest"),
        notes=tuple(notes),
        scale=(low, high),
    )
