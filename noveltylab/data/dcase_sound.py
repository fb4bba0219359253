"""DCASE 2017 task 2: recordings cut into segments, as log-mel images or as raw sound."""

import io
import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from noveltylab.data.cache import Arrays
from noveltylab.data.dcase_meta import TOLERANCE, Mixture, Span, in_seconds
from noveltylab.data.stored import Stored
from noveltylab.errors import UserError
from noveltylab.results.files import open_regular
from noveltylab.results.provenance import cores

#: samples per second; what is stored at another rate is resampled
RATE = 44_100
#: rows and columns of an image
SIDE = 64
#: log-mel: window and hop in samples, mel bands, frames of one image
WINDOW, HOP, BANDS, FRAMES = 2048, 512, 64, 64
#: amplitude of a sample, 1 in most files, 2**31 in floats that hold whole numbers; beyond it powers
#: overflow
LOUDEST = 2.0**31

#: samples per second that a file may have
_RATES = (8_000, 384_000)
#: bytes that a recording in an archive may have
_MAX_SOUND = 1 << 30


@dataclass(frozen=True)
class Segmenter:
    """Segments of `length` samples, one every `step` samples; the end of a file is dropped."""

    length: int
    step: int

    def count(self, samples: int) -> int:
        """How many whole segments so many samples hold."""
        return max(0, (samples - self.length) // self.step + 1)

    def positive(self, count: int, span: Span | None) -> NDArray[np.bool_]:
        """Which of the first `count` segments share a sample with the event.

        The event lasts from sample round(onset * RATE) to the offset's.
        """
        if span is None:
            return np.zeros(count, np.bool_)
        first, last = round(span[0] * RATE), round(span[1] * RATE)
        starts = self.step * np.arange(count)
        return (starts < max(last, first + 1)) & (starts + self.length > first)


#: The frames of an image begin HOP samples apart and see WINDOW samples each, so that images
#: overlap by WINDOW - HOP.
SEGMENTERS = {
    "logmel": Segmenter((FRAMES - 1) * HOP + WINDOW, FRAMES * HOP),
    "waveform": Segmenter(SIDE * SIDE, SIDE * SIDE),
}
_DTYPES = {"logmel": np.uint8, "waveform": np.int16}


class Header(NamedTuple):
    """What the header of a wav file says; rate in samples per second."""

    frames: int
    rate: int
    channels: int


def read_segments(files: list[Stored], mixtures: list[Mixture], features: str) -> Arrays:
    """Read recordings as segments.

    One file at a time is in memory for each core. Logmel reads devtrain twice, first for the scale:
    its extremes, with nothing of the test and no event in them.

    Returns:
        images (N, 1, 64, 64) as dcase.read has them; of each file counts (segments), frames, rates
        and channels (as stored); scale (2,), the decibels that 0 and 255 stand for.
    """
    sound = _libraries()
    segmenter = SEGMENTERS[features]
    headers: list[Header] = []
    counts: list[int] = []
    for file, mixture in zip(files, mixtures, strict=True):
        header = _header(file, mixture.span, segmenter, sound)
        headers.append(header)
        counts.append(segmenter.count(_resampled(header)))
    ends = np.cumsum(counts)
    images = np.empty((ends[-1], 1, SIDE, SIDE), _DTYPES[features])

    def segments(i: int) -> NDArray[np.float32]:
        return _segments(files[i], headers[i], features, sound)

    def extremes(i: int) -> Span:
        clean = segments(i)[~segmenter.positive(counts[i], mixtures[i].span)]
        if not len(clean):
            return math.inf, -math.inf
        return float(clean.min()), float(clean.max())

    with ThreadPoolExecutor(cores()) as pool:
        low, high = 0.0, 0.0
        if features == "logmel":
            training = [i for i, mixture in enumerate(mixtures) if mixture.part == "devtrain"]
            lows, highs = zip(*pool.map(extremes, training), strict=True)
            low, high = min(lows), max(highs)
            if low > high:
                raise UserError(
                    f"{files[0].path.parent}: no segment without an event, so nothing to train on."
                )

        def fill(i: int) -> None:
            values = _quantised(segments(i), features, (low, high))
            images[ends[i] - counts[i] : ends[i], 0] = values

        for _ in pool.map(fill, range(len(files))):
            pass
    frames, rates, channels = np.array(headers).T
    return {
        "images": images,
        "counts": np.array(counts),
        "frames": frames,
        "rates": rates,
        "channels": channels,
        "scale": np.array([low, high]),
    }


def read_recording(path: Path, features: str, scale: tuple[float, float]) -> Tensor:
    """The segments (n, 1, 64, 64) of one wav file, in order, made as those of a run were.

    Args:
        path: The file.
        features: "logmel" or "waveform".
        scale: Samples.scale of the run.

    Raises:
        UserError: it is no whole wav file, or shorter than one segment; or librosa or soundfile is
            missing.
    """
    sound = _libraries()
    file = Stored(path)
    header = _header(file, None, SEGMENTERS[features], sound)
    values = _quantised(_segments(file, header, features, sound), features, scale)
    return torch.from_numpy(values.astype(_DTYPES[features])).unsqueeze(1)


def _segments(file: Stored, header: Header, features: str, sound: "_Sound") -> NDArray[np.float32]:
    """The segments (n, 64, 64) of a recording, in decibels or as sound."""
    wave = _wave(file, header, sound)
    segmenter = SEGMENTERS[features]
    count = segmenter.count(_resampled(header))
    if features == "logmel":
        return _logmel(wave, count, sound)
    return wave[: count * segmenter.step].reshape(-1, SIDE, SIDE)


def _quantised(
    values: NDArray[np.float32], features: str, scale: tuple[float, float]
) -> NDArray[np.float32]:
    """Whole numbers as stored: 0 to 255 between the decibels of the scale, or sound times 32768."""
    if features == "logmel":
        low, high = scale
        least, most = 0, 255
        levels = np.rint((values - low) * (255 / max(high - low, 1e-6)))
    else:
        least, most = -32768, 32767
        levels = np.rint(values * 32768)
    clipped: NDArray[np.float32] = np.clip(levels, least, most)
    return clipped


class _Sound(NamedTuple):
    """Functions of soundfile and librosa.

    They are looked up once, before threads start: librosa imports its parts only then.
    """

    info: Callable[..., Any]
    read: Callable[..., Any]
    resample: Callable[..., Any]
    melspectrogram: Callable[..., Any]
    power_to_db: Callable[..., Any]


def _libraries() -> _Sound:
    try:
        import librosa
        import soundfile
    except (ImportError, OSError) as error:  # OSError: the C library of soundfile is missing
        raise UserError(
            "data=dcase reads sound with librosa and soundfile, which cannot be used here "
            f"({error}). Install them with pip install noveltylab[audio]"
        ) from error
    mel = librosa.feature.melspectrogram
    return _Sound(soundfile.info, soundfile.read, librosa.resample, mel, librosa.power_to_db)


def _source(file: Stored) -> str | io.BytesIO:
    """A recording as soundfile takes it."""
    if file.member:
        return io.BytesIO(file.read(_MAX_SOUND))
    return str(file.path)


def _header(file: Stored, span: Span | None, segmenter: Segmenter, sound: _Sound) -> Header:
    """The header of a wav file; UserError unless it is whole and long enough for its event."""
    _check_riff(file)
    try:
        info = sound.info(_source(file))
    except RuntimeError as error:
        raise UserError(f"{file} is not a readable wav file ({error}). Replace it.") from None
    lowest, highest = _RATES
    if not lowest <= info.samplerate <= highest:
        raise UserError(
            f"{file}: expected {lowest} to {highest} samples per second, found {info.samplerate}."
        )
    header = Header(info.frames, info.samplerate, info.channels)
    seconds = header.frames / header.rate
    if span is not None and span[1] > seconds + TOLERANCE:
        raise UserError(
            f"{file} lasts {seconds:.6g} s, but its event is at {in_seconds(span)}. Replace it."
        )
    if not segmenter.count(_resampled(header)):
        raise UserError(
            f"{file} lasts {seconds:.6g} s, less than one segment ({segmenter.length / RATE:.3g} s). "
            "Replace it."
        )
    return header


def _check_riff(file: Stored) -> None:
    """UserError unless a file begins as a wav file does and is as long as it says."""
    source = _source(file)
    try:
        stream = open_regular(source) if isinstance(source, str) else source
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}).") from None
    with stream:
        head = stream.read(12)
        size = stream.seek(0, os.SEEK_END)
    if head[:4] != b"RIFF" or head[8:] != b"WAVE":
        raise UserError(
            f"{file} is not a wav file: expected it to start with RIFF....WAVE, found {head!r}. "
            "Replace it."
        )
    # libsndfile would read a truncated file without a word
    announced = int.from_bytes(head[4:8], "little") + 8
    if announced > size:
        raise UserError(
            f"{file} is truncated: its header announces {announced} bytes, found {size}. "
            "Replace it."
        )


def _resampled(header: Header) -> int:
    """The samples of a recording at RATE, rounded up."""
    return -(-header.frames * RATE // header.rate)


def _wave(file: Stored, header: Header, sound: _Sound) -> NDArray[np.float32]:
    """The sound as float32 (samples,) in [-1, 1] at RATE, the mean of its channels."""
    try:
        stored, _ = sound.read(_source(file), dtype="float32", always_2d=True)
    except RuntimeError as error:
        raise UserError(f"{file} is not a readable wav file ({error}). Replace it.") from None
    if stored.shape != (header.frames, header.channels) or not np.isfinite(stored).all():
        raise UserError(
            f"{file} is damaged: expected {header.frames} numbers in {header.channels} channels. "
            "Replace it."
        )
    loudest = float(np.abs(stored).max(initial=0))
    if loudest > LOUDEST:
        raise UserError(
            f"{file} has samples up to {loudest:.3g}, and sound lies in [-1, 1]. Replace it."
        )
    wave: NDArray[np.float32] = stored.mean(1)
    if header.rate != RATE:
        # its length may be one off, by the rounding of the ratio
        resampled = sound.resample(wave, orig_sr=header.rate, target_sr=RATE)
        wave = np.pad(resampled, (0, 1))[: _resampled(header)]
    return wave


def _logmel(wave: NDArray[np.float32], count: int, sound: _Sound) -> NDArray[np.float32]:
    """Power in decibels, at least -100, of the first `count` images, (count, BANDS, FRAMES)."""
    power = sound.melspectrogram(
        y=wave, sr=RATE, n_fft=WINDOW, hop_length=HOP, n_mels=BANDS, center=False, power=2.0
    )
    levels: NDArray[np.float32] = sound.power_to_db(power, ref=1.0, amin=1e-10, top_db=None)
    return levels[:, : count * FRAMES].reshape(BANDS, count, FRAMES).swapaxes(0, 1)
