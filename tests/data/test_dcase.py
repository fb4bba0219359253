"""DCASE 2017: segments and labels against counts from the files themselves; damaged copies; the
cache; whole runs.
"""

import csv
import math
import sys
import wave
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from omegaconf import OmegaConf

from noveltylab.data import dcase, dcase_meta, dcase_sound
from noveltylab.data.load import load
from noveltylab.data.protocols import split
from noveltylab.data.stored import resolve_root
from noveltylab.errors import UserError
from noveltylab.job import CONF
from noveltylab.run.pictures import read_recording
from tests.formats import write_dcase

librosa = pytest.importorskip("librosa", reason="the extra [audio] is not installed")
soundfile = pytest.importorskip("soundfile", reason="the extra [audio] is not installed")

# librosa compiles itself for a minute: in one process only
pytestmark = pytest.mark.xdist_group("audio")

BEACH, PARK = dcase_meta.SCENES.index("beach"), dcase_meta.SCENES.index("park")
FEATURES = pytest.mark.parametrize("features", ["logmel", "waveform"])
WHERE = Path("meta.yaml")
SETTINGS = settings(deadline=None, max_examples=100)


def read(
    root: Path,
    features: str = "logmel",
    inlier: int = PARK,
    verify: bool = False,
    cache: bool = False,
) -> Any:
    return load("dcase", root, verify, False, features=features, inlier=inlier, cache=cache)


def expect(
    root: Path, *parts: str, inlier: int = PARK, features: str = "logmel", verify: bool = False
) -> None:
    """Reading raises one UserError of one line with all the parts in its message."""
    with pytest.raises(UserError) as caught:
        read(root, features, inlier, verify)
    for part in parts:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undamaged copy with two scenes, not to be written to."""
    root = tmp_path_factory.mktemp("dcase")
    write_dcase(root)
    return root


def samples_of(path: Path) -> NDArray[np.int64]:
    """The 24-bit numbers of a wav file, (samples, channels), read with the standard library."""
    with wave.open(str(path)) as file:
        raw = np.frombuffer(file.readframes(file.getnframes()), np.uint8).reshape(
            -1, file.getnchannels(), 3
        )
    value = (
        raw[..., 0].astype(np.int64)
        | raw[..., 1].astype(np.int64) << 8
        | raw[..., 2].astype(np.int64) << 16
    )
    return np.where(value >= 1 << 23, value - (1 << 24), value)


def listed(folder: Path) -> dict[str, list[str]]:
    """name -> the rest of its line, of the event lists in a part's folder."""
    fields = {}
    for path in sorted((folder / "meta").glob("*.csv")):
        for row in csv.reader(path.read_text().splitlines(), delimiter="\t"):
            fields[row[0]] = row[1:]
    return fields


def path_of(root: Path, stem: str) -> Path:
    (path,) = root.glob(f"TUT-*/data/mixture_data/*/*/audio/{stem}.wav")
    return path


# Contents.


@pytest.mark.parametrize("features", ["logmel", pytest.param("waveform", marks=pytest.mark.slow)])
def test_labels_count_the_samples_that_lie_in_an_event(whole: Path, features: str) -> None:
    samples = read(whole, features)
    expected = {}
    for path in sorted(whole.glob("TUT-*/data/mixture_data/*/*/audio/*.wav")):
        fields = listed(path.parents[1])[path.name]
        inside = np.zeros(len(samples_of(path)), bool)
        if fields:
            inside[round(float(fields[0]) * 44100) : round(float(fields[1]) * 44100)] = True
        label = {"babycry": 15, "glassbreak": 16, "gunshot": 17}.get(
            fields[2] if fields else "", PARK
        )
        part = path.parents[2].name
        if features == "waveform":
            pieces = [inside[start : start + 4096] for start in range(0, len(inside) - 4095, 4096)]
        else:
            frames = [inside[start : start + 2048] for start in range(0, len(inside) - 2047, 512)]
            pieces = [
                np.concatenate(frames[start : start + 64])
                for start in range(0, len(frames) - 63, 64)
            ]
        for k, piece in enumerate(pieces):
            expected[f"{part}/{path.stem}/{k:04d}"] = label if piece.any() else PARK
    mine = dict(zip(samples.ids.tolist(), samples.labels.tolist(), strict=True))
    assert mine == {name: label for name, label in expected.items() if name in mine}
    assert len(mine) == len(expected) / 2, "the other half is the beach"
    assert set(mine.values()) == {PARK, 15, 16, 17}


@given(st.integers(0, 20_000), st.integers(1, 9_000), st.sampled_from(["logmel", "waveform"]))
@example(0, 4096, "waveform")
@example(4095, 1, "waveform")
@example(4096, 1, "waveform")
@example(34_303, 1, "logmel")
@example(34_304, 1, "logmel")
def test_segments_touch_an_event_at_its_very_edges(first: int, length: int, features: str) -> None:
    cut = dcase_sound.SEGMENTERS[features]
    inside = np.zeros(120_000, bool)
    inside[first : first + length] = True
    count = cut.count(len(inside))
    expected = [
        inside[number * cut.step : number * cut.step + cut.length].any() for number in range(count)
    ]
    assert cut.positive(count, (first / 44100, (first + length) / 44100)).tolist() == expected
    assert len(inside) - cut.step < (count - 1) * cut.step + cut.length <= len(inside)
    assert not cut.positive(count, None).any()


def test_logmel_is_librosas_scaled_by_the_event_free_segments_of_devtrain(whole: Path) -> None:
    samples = read(whole)
    assert samples.images.dtype.is_floating_point is False
    assert samples.images.shape[1:] == (1, 64, 64)
    levels = []
    for stem, count in zip(samples.units.ids, np.bincount(samples.units.of), strict=True):
        sound, rate = soundfile.read(path_of(whole, stem))
        spectrum = librosa.stft(sound, n_fft=2048, hop_length=512, center=False)
        mel = librosa.filters.mel(sr=rate, n_fft=2048, n_mels=64) @ np.abs(spectrum) ** 2
        levels += [
            10 * np.log10(np.maximum(mel[:, 64 * k : 64 * k + 64], 1e-10)) for k in range(count)
        ]
    truth = np.stack(levels)
    clean = truth[(samples.facts["part"] == "devtrain") & (samples.labels == PARK)]
    low, high = clean.min(), clean.max()
    step = (high - low) / 255
    images = samples.images[:, 0].numpy().astype(float)
    assert np.abs(low + images * step - np.clip(truth, low, high)).max() < 0.51 * step
    assert images.min() == 0
    assert images.max() == 255


def test_scale_hears_neither_test_nor_events(tmp_path: Path) -> None:
    folders = write_dcase(tmp_path)
    before = read(tmp_path)
    for part, folder in folders.items():
        for name, fields in listed(folder).items():
            if part != "devtrain" or fields:
                path = folder / "audio" / name
                sound, rate = soundfile.read(path)
                start, end = (
                    (round(float(field) * 44100) for field in fields[:2])
                    if part == "devtrain"
                    else (0, None)
                )
                sound[start:end] = np.clip(30 * sound[start:end], -1, 1)
                soundfile.write(path, sound, rate, subtype="PCM_24")
    after = read(tmp_path)
    train = (before.facts["part"] == "devtrain") & (before.labels == PARK)
    assert np.array_equal(before.images[train], after.images[train])
    tested = after.facts["part"] == "evaltest"
    assert after.images[tested].float().mean() > before.images[tested].float().mean() + 20
    assert (after.images[tested] == 255).float().mean() > 10 * (
        before.images[tested] == 255
    ).float().mean(), "clipped"


def test_waveform_is_the_stored_wave_in_rows(whole: Path) -> None:
    samples = read(whole, "waveform")
    assert samples.images.shape[1:] == (1, 64, 64)
    for unit, stem in enumerate(samples.units.ids):
        rows = np.flatnonzero(samples.units.of == unit)
        stored = samples_of(path_of(whole, stem))[:, 0] / 256
        mine = samples.images[rows].numpy().reshape(-1)
        assert len(mine) == len(stored) // 4096 * 4096
        assert np.abs(mine - stored[: len(mine)]).max() <= 0.5


@FEATURES
def test_what_the_samples_are_pieces_of(whole: Path, features: str) -> None:
    samples = read(whole, features, BEACH)
    units = samples.units
    assert units.kind == "file"
    assert (
        len(units.ids) == 18 and (np.diff(units.of) >= 0).all() and set(units.of) == set(range(18))
    )
    prefix = [str(name).rsplit("/", 1)[0] for name in samples.ids]
    parts = samples.facts["part"]
    assert prefix == [
        f"{part}/{units.ids[unit]}" for part, unit in zip(parts, units.of, strict=True)
    ]
    assert len(set(samples.ids)) == len(samples.ids)
    assert np.array_equal(samples.official_test, parts == "evaltest")
    assert np.array_equal(units.test, [stem.startswith("mixture_evaltest") for stem in units.ids])
    kinds = [stem.split("_")[2] for stem in units.ids]
    assert sorted(units.labels) == [BEACH] * 9 + [15] * 3 + [16] * 3 + [17] * 3
    assert all(
        label in (BEACH, dcase_meta.EVENT_LABELS[kind])
        for label, kind in zip(units.labels.tolist(), kinds, strict=True)
    )
    assert samples.verified is False
    result = split(
        "scenes",
        samples.labels,
        samples.official_test,
        BEACH,
        seed=0,
        val_fraction=0.1,
        facts=samples.facts,
    )
    assert set(parts[result.train]) == {"devtrain"} and set(parts[result.val]) == {"devtest"}
    assert np.array_equal(result.test, np.flatnonzero(parts == "evaltest"))


@FEATURES
def test_a_recording_is_put_together_again(whole: Path, features: str) -> None:
    samples = read(whole, features)
    unit = int(np.flatnonzero(samples.units.labels > 14)[0])
    recording = read_recording(samples, unit)
    fields = listed(path_of(whole, samples.units.ids[unit]).parents[1])[
        f"{samples.units.ids[unit]}.wav"
    ]
    assert recording.events == [(float(fields[0]), float(fields[1]))]
    rows = np.flatnonzero(samples.units.of == unit)
    images = samples.images[rows, 0].numpy()
    if features == "logmel":
        assert np.array_equal(
            recording.picture, np.concatenate(list(images), axis=1).astype(np.float32) / 255
        )
        assert recording.seconds == len(rows) * 64 * 512 / 44100
    else:
        wave = images.reshape(-1).astype(float) / 32768
        assert recording.picture.max() == np.abs(wave).max()
        assert recording.seconds == len(wave) / 44100
        loud = (
            (np.arange(len(recording.picture)) + 0.5) * recording.seconds / len(recording.picture)
        )
        assert (
            recording.events[0][0] - 0.01
            < loud[recording.picture.argmax()]
            < recording.events[0][1] + 0.01
        )
    assert recording.times[0] == pytest.approx(recording.seconds / len(rows) / 2)
    assert recording.times[-1] == pytest.approx(recording.seconds - recording.times[0])
    quiet = int(np.flatnonzero(samples.units.labels == PARK)[0])
    assert read_recording(samples, quiet).events == []


@pytest.mark.parametrize("rate", [22_050, 48_000])
def test_another_rate_is_resampled_and_said(tmp_path: Path, whole: Path, rate: int) -> None:
    write_dcase(tmp_path, rate=rate)
    samples, original = read(tmp_path), read(whole)
    assert any(
        note == f"18 files resampled to 44.1 kHz from {rate / 1000:g} kHz" for note in samples.notes
    )
    assert not any("resampled" in note for note in original.notes)
    assert np.array_equal(samples.labels, original.labels), "times stay what they were"
    unit = int(np.flatnonzero(samples.units.labels > 14)[0])
    spectra = [read_recording(copy, unit).picture for copy in (samples, original)]
    start, end = (round(time * 44100 / 512) for time in read_recording(samples, unit).events[0])
    peaks = [spectrum[:, start:end].mean(1).argmax() for spectrum in spectra]
    assert peaks[0] == peaks[1], "the tone stays in its band"


def test_channels_are_averaged_and_said(tmp_path: Path) -> None:
    write_dcase(tmp_path, channels=2)
    samples = read(tmp_path, "waveform")
    assert "18 files with more than one channel: the mean of the channels is used" in samples.notes
    stored = samples_of(path_of(tmp_path, samples.units.ids[0])).mean(1)[:4096] / 256
    assert np.abs(samples.images[0].numpy().reshape(-1) - stored).max() <= 0.5


def test_notes_say_what_a_copy_lacks(whole: Path) -> None:
    samples = read(whole, verify=True)
    counts = (
        "1,500 mixtures expected in each part, found 12 in devtrain, 12 in devtest, 12 in evaltest"
    )
    assert f"not the whole set: {counts}" in samples.notes
    assert any(
        note.startswith("scenes without recordings in the data: bus, cafe/restaurant, car")
        for note in samples.notes
    )
    assert any("18 files do not last 30 s (2.5 to 2.5 s)" in note for note in samples.notes)
    seconds = 2.5 - 3 * 64 * 512 / 44100
    assert any(f"up to {seconds:.2g} s at the end" in note for note in samples.notes)
    assert not any("whole set" in note for note in read(whole).notes)


def test_scene_names_and_their_order() -> None:
    conf = OmegaConf.load(CONF / "data" / "dcase.yaml")
    assert tuple(conf.classes) == dcase_meta.SCENES
    assert dcase_meta.EVENT_LABELS == {"babycry": 15, "glassbreak": 16, "gunshot": 17}


@pytest.mark.parametrize(
    ("name", "scene"), [("cafe/restaurant", 2), ("city center", 4), ("Residential_Area", 12)]
)
def test_scenes_with_spaces_and_slashes_are_found(tmp_path: Path, name: str, scene: int) -> None:
    write_dcase(tmp_path, scenes=("beach", name), mixtures=1)
    assert set(read(tmp_path, inlier=scene).labels) == {scene}
    expect(
        tmp_path,
        "no recording of the scene park",
        f"scenes found: beach, {dcase_meta.SCENES[scene]}.",
    )


# The cache.


@FEATURES
def test_a_second_reading_opens_no_audio_and_gives_the_same_bytes(
    tmp_path: Path, features: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_dcase(tmp_path)
    first = read(tmp_path, features, cache=True)
    with monkeypatch.context() as patch:
        patch.setattr(dcase, "read_segments", lambda *_: pytest.fail("read again"))
        for library in ("soundfile", "librosa"):
            patch.setitem(sys.modules, library, None)
        second = read(tmp_path, features, cache=True)
    assert np.array_equal(first.images, second.images) and first.images.dtype == second.images.dtype
    for name in ("labels", "ids", "official_test"):
        assert np.array_equal(getattr(first, name), getattr(second, name))
    assert first.notes == second.notes
    assert np.array_equal(first.images, read(tmp_path, features).images), "as without a cache"


def test_the_cache_knows_features_scene_and_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = write_dcase(tmp_path)
    read(tmp_path, cache=True)
    calls: list[str] = []
    inner = dcase.read_segments
    monkeypatch.setattr(
        dcase, "read_segments", lambda *arguments: calls.append(arguments[2]) or inner(*arguments)
    )  # type: ignore[func-returns-value]
    read(tmp_path, "waveform", cache=True)
    read(tmp_path, inlier=BEACH, cache=True)
    assert calls == ["waveform", "logmel"]
    path = next(path for path in (folders["evaltest"] / "audio").iterdir() if "_002_" in path.name)
    sound, rate = soundfile.read(path)
    soundfile.write(path, sound[::-1], rate, subtype="PCM_24")
    read(tmp_path, cache=True)
    assert calls == ["waveform", "logmel", "logmel"], "a file of the park changed"
    read(tmp_path, inlier=BEACH, cache=True)
    assert len(calls) == 3, "none of the beach"
    read(tmp_path, cache=False)
    assert len(calls) == 4


# Damaged copies.


def meta(folder: Path, kind: str = "babycry", suffix: str = "yaml") -> Path:
    (path,) = (folder / "meta").glob(f"*_{kind}.{suffix}")
    return path


def edit(path: Path, old: str, new: str, count: int = 1) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, count))


def last_audio(folder: Path, scene_number: str = "_003_") -> Path:
    (path,) = (folder / "audio").glob(f"mixture_*_gunshot{scene_number}*.wav")
    return path


def damage_header(path: Path, position: int, content: bytes) -> None:
    raw = bytearray(path.read_bytes())
    raw[position : position + len(content)] = content
    path.write_bytes(raw)


@pytest.mark.parametrize(
    ("damage", "parts"),
    [
        (
            lambda path: path.write_bytes(path.read_bytes()[:-1000]),
            ["is truncated", "announces 330794 bytes"],
        ),
        (lambda path: path.write_bytes(path.read_bytes()[:30]), ["is truncated"]),
        (lambda path: path.write_bytes(b""), ["is not a wav file"]),
        (lambda path: damage_header(path, 0, b"FORM"), ["is not a wav file", "RIFF....WAVE"]),
        (lambda path: path.write_bytes(b"<html>" + bytes(100)), ["is not a wav file"]),
        (lambda path: damage_header(path, 12, b"junk"), ["is not a readable wav file"]),
        (lambda path: damage_header(path, 24, bytes(4)), ["wav"]),
        (
            lambda path: damage_header(path, 24, b"\x01\0\0\0"),
            ["8000 to 384000 samples per second, found 1"],
        ),
        (
            lambda path: damage_header(path, 24, b"\xff\xff\xff\x7f"),
            ["samples per second, found 2147483647"],
        ),
        (
            lambda path: soundfile.write(path, np.zeros(44100), 44100, subtype="PCM_24"),
            ["lasts 1 s", "event is at 0."],
        ),
        (
            lambda path: soundfile.write(path, np.full(110_250, np.nan), 44100, subtype="FLOAT"),
            ["is damaged"],
        ),
    ],
)
def test_damaged_audio_is_named(
    tmp_path: Path, damage: Callable[[Path], None], parts: list[str]
) -> None:
    path = last_audio(write_dcase(tmp_path)["evaltest"])
    damage(path)
    expect(tmp_path, str(path), *parts)


def test_a_recording_without_a_whole_segment_is_refused(tmp_path: Path) -> None:
    path = last_audio(write_dcase(tmp_path)["devtest"], "_002_")
    soundfile.write(path, np.zeros(30_000), 44100, subtype="PCM_24")
    expect(tmp_path, str(path), "less than one segment (0.778 s)")
    assert any(
        "files do not last 30 s (0.68 to 2.5 s)" in note
        for note in read(tmp_path, "waveform").notes
    )


def test_only_the_scenes_own_audio_is_opened(tmp_path: Path) -> None:
    folder = write_dcase(tmp_path)["devtrain"]
    last_audio(folder).write_bytes(b"damaged")
    last_audio(folder, "_002_").unlink()
    assert len(read(tmp_path, inlier=BEACH).units.ids) == 18
    fragments = (
        "1 of the 6 files of the scene park are missing",
        "mixture_devtrain_gunshot_002_",
        "data.verify=false",
    )
    expect(tmp_path, *fragments, verify=True)


def test_a_set_with_gaps_is_read_only_unverified_and_counted(tmp_path: Path) -> None:
    folders = write_dcase(tmp_path, seconds=1.6)
    whole = read(tmp_path, verify=True)
    assert whole.verified is None and whole.missing == 0
    last_audio(folders["devtrain"]).unlink()
    meta(folders["evaltest"], "gunshot").unlink()
    fragments = (
        "mixture_recipes_evaltest_gunshot.yaml not found",
        "accept what is there with data.verify=false",
    )
    expect(tmp_path, *fragments, verify=True)
    part = read(tmp_path)
    assert len(part.units.ids) == 18 - 1 - 2 and part.verified is False and part.missing == 1
    assert "recordings of the scene missing: 1 of 16" in part.notes
    assert "events without meta files, left out: gunshot in evaltest" in part.notes
    for path in (folders["devtrain"] / "audio").iterdir():
        path.unlink()
    (folders["devtrain"] / "audio" / "other.wav").write_bytes(b"")
    expect(tmp_path, "6 of the 6 files of the scene park are missing", "Add them.")


def test_archives_as_downloaded_are_read_in_place(tmp_path: Path) -> None:
    write_dcase(tmp_path / "loose", seconds=1.6)
    root = tmp_path / "root"
    root.mkdir()
    # as published, in several archives for each of the two
    for archive in (
        "TUT-rare-sound-events-2017-development",
        "TUT-rare-sound-events-2017-evaluation",
    ):
        files = sorted(path for path in (tmp_path / "loose" / archive).rglob("*") if path.is_file())
        for part in range(2):
            with zipfile.ZipFile(root / f"{archive}.mixture_data.{part + 1}.zip", "w") as packed:
                for path in files[part::2]:
                    packed.write(path, path.relative_to(tmp_path / "loose"))
                packed.writestr("../../outside.wav", b"")
    loose, packed_samples = read(tmp_path / "loose"), read(root, cache=True)
    assert (
        torch.equal(loose.images, packed_samples.images)
        and loose.ids.tolist() == packed_samples.ids.tolist()
    )
    assert len(list(root.iterdir())) == 4 and not list(tmp_path.rglob("outside.wav"))
    development = read(tmp_path / "loose" / "TUT-rare-sound-events-2017-development")
    assert torch.equal(development.images, loose.images)
    (root / "TUT-rare-sound-events-2017-evaluation.mixture_data.2.zip").write_bytes(b"PK, but torn")
    expect(root, "is no whole zip archive", "evaluation.mixture_data.2.zip")


def test_nothing_to_train_on(tmp_path: Path) -> None:
    folder = write_dcase(tmp_path)["devtrain"]
    for kind in dcase_meta.EVENTS:
        lines, recipes = "", ""
        for path in sorted((folder / "audio").glob(f"*_{kind}_*.wav")):
            lines += f"{path.name}\t0.0\t2.5\t{kind}\n"
            recipes += f"- {{mixture_audio_filename: {path.name}, bg_path: {path.name}, bg_classname: park, "
            recipes += "event_present: true, event_start_in_mixture_seconds: 0, event_length_seconds: 2.5}\n"
        meta(folder, kind, "csv").write_text(lines)
        meta(folder, kind).write_text(recipes)
    expect(tmp_path, "no segment without an event, so nothing to train on")


def name_of(path: Path, line: int = 0) -> str:
    return path.read_text().splitlines()[line].split("\t")[0]


@pytest.mark.parametrize(
    ("suffix", "damage", "parts"),
    [
        (
            "csv",
            lambda p: edit(p, "\tbabycry", "\tgunshot"),
            ["line 2", "onset, offset and 'babycry'"],
        ),
        ("csv", lambda p: edit(p, "\t0.91", "\t0.92"), ["at 0.92", "recipe has it at 0.91"]),
        (
            "csv",
            lambda p: p.write_text(p.read_text().split("\t")[0] + "\n"),
            ["does not list", "2 such"],
        ),
        (
            "csv",
            lambda p: edit(p, "\n", "\t0.1\t0.2\tbabycry\n"),
            ["0.1 to 0.2 s", "recipe has it at no time"],
        ),
        ("csv", lambda p: p.write_text(p.read_text() * 2), ["line 5", "listed twice"]),
        (
            "csv",
            lambda p: p.write_text(p.read_text() + "mixture_devtest_babycry_999_0.wav\n"),
            ["there is no recipe"],
        ),
        (
            "csv",
            lambda p: p.write_text("mixture_devtest_babycry_../../../x.wav\n"),
            ["expected a name such as"],
        ),
        ("csv", lambda p: p.write_text("/etc/passwd\n"), ["line 1", "expected a name such as"]),
        ("csv", lambda p: edit(p, "\t0.910000", "\tnan"), ["cannot last from nan"]),
        ("csv", lambda p: edit(p, "\t0.91", "\t9e999"), ["cannot last from inf"]),
        ("csv", lambda p: edit(p, "\t0.91", "\t-0.91"), ["cannot last from -0.9"]),
        ("csv", lambda p: edit(p, "\t0.91", "\tsoon"), ["expected a time in seconds, found 'soon"]),
        ("csv", lambda p: p.write_bytes(b"\xff\xfe\0"), ["is no text"]),
        ("yaml", lambda p: p.write_text(""), ["it is empty"]),
        ("yaml", lambda p: p.write_text("- 1\n"), ["entry 1: expected flat mappings"]),
        ("yaml", lambda p: p.write_text("a: b\n"), ["expected flat mappings"]),
        ("yaml", lambda p: p.write_text("[" * 200_000), ["is no list of recipes"]),
        ("yaml", lambda p: p.write_text("- {a: " * 100_000), ["is no list of recipes"]),
        ("yaml", lambda p: p.write_text("- {bg_path: [1, 2"), ["is no list of recipes"]),
        ("yaml", lambda p: p.write_text("- {bg_path: [1]}"), ["entry 1: expected flat mappings"]),
        ("yaml", lambda p: p.write_text("- {bg_path: 'x"), ["is no list of recipes"]),
        ("yaml", lambda p: p.write_text("- &a {bg_path: *a}\n"), ["is no list of recipes"]),
        ("yaml", lambda p: p.write_text("- {<<: *a}\n"), ["undefined alias"]),
        ("yaml", lambda p: p.write_text("- {}\n---\n- {}\n"), ["expected a single document"]),
        (
            "yaml",
            lambda p: edit(p, "bg_classname: park", "bg_classname: pork"),
            ["unknown scene 'pork'", "'park'"],
        ),
        (
            "yaml",
            lambda p: edit(p, "bg_classname: park", "bg_class: park"),
            ["recipe 3: has no bg_classname"],
        ),
        (
            "yaml",
            lambda p: edit(p, "event_present: true", "event_present: 1"),
            ["true or false, not '1'"],
        ),
        (
            "yaml",
            lambda p: edit(p, "event_present: true", "event_present: false"),
            ["recipe has it at no time"],
        ),
        (
            "yaml",
            lambda p: edit(p, "event_length_seconds", "event_long_seconds"),
            ["expected a time", "found ''"],
        ),
        (
            "yaml",
            lambda p: edit(
                p, "event_start_in_mixture_seconds: 0", "event_start_in_mixture_seconds: 1"
            ),
            ["1.91"],
        ),
        (
            "yaml",
            lambda p: edit(p, "event_length_seconds: 0.", "event_length_seconds: 9."),
            ["its recipe has it at"],
        ),
        (
            "yaml",
            lambda p: edit(p, "event_length_seconds: 0", f"event_length_seconds: {'9' * 9999}"),
            ["to inf s"],
        ),
        (
            "yaml",
            lambda p: edit(p, "filename: mixture", "filename: ../../mixture"),
            ["found '../../mixture"],
        ),
        ("yaml", lambda p: edit(p, "filename: mixture", "filename: /mixture"), ["found '/mixture"]),
        (
            "yaml",
            lambda p: edit(p, "filename: mixture_devtest", "filename: mixture_evaltest"),
            ["mixture_devtest_"],
        ),
        ("yaml", lambda p: p.write_text(p.read_text() * 2), ["recipe 5", "a second time"]),
    ],
)
def test_damaged_meta_files_are_named(
    tmp_path: Path, suffix: str, damage: Callable[[Path], None], parts: list[str]
) -> None:
    folder = write_dcase(tmp_path, seconds=1.6)["devtest"]
    damage(meta(folder, suffix=suffix))
    expect(tmp_path, str(folder / "meta"), *parts)


@pytest.mark.parametrize("where", ["value", "recipe", "list"])
def test_a_hostile_yaml_tag_is_refused_and_runs_nothing(tmp_path: Path, where: str) -> None:
    import yaml

    path = meta(write_dcase(tmp_path, seconds=1.6)["evaltest"], "gunshot")
    marker = tmp_path / "executed"
    attack = f'!!python/object/apply:os.system ["touch {marker}"]'
    text = {
        "value": f"- {{bg_path: {attack}}}\n",
        "recipe": f"- {attack}\n",
        "list": f"{attack}\n",
    }[where]
    path.write_text(text)
    expect(tmp_path, str(path), "tag:yaml.org,2002:python/object/apply:os.system")
    assert not marker.exists()
    yaml.unsafe_load(text)
    assert marker.exists(), "the attack itself has to work"


def test_parts_may_not_share_backgrounds(tmp_path: Path) -> None:
    folders = write_dcase(tmp_path, seconds=1.6)
    edit(
        meta(folders["evaltest"]),
        "bg_path: audio/evaltest_babycry_3.wav",
        "bg_path: audio/devtrain_gunshot_0.wav",
    )
    expect(
        tmp_path,
        "audio/devtrain_gunshot_0.wav is used in devtrain and in evaltest",
        "must not share",
    )


def test_missing_folders_and_scenes(tmp_path: Path) -> None:
    expect(
        tmp_path,
        "devtrain (no such folder)",
        "20b255387a2d0cddc0a3dff5014875e7/audio",
        "data.root",
        "Put the archives",
    )
    folders = write_dcase(tmp_path, seconds=1.6)
    expect(
        tmp_path,
        "no recording of the scene home; scenes found: beach, park.",
        inlier=dcase_meta.SCENES.index("home"),
    )
    folders["evaltest"].rename(tmp_path / "evaltest")
    expect(tmp_path, "bbb81504db15a03680a0044474633b67/audio", "evaltest. ")


def test_a_scene_of_one_part_only(tmp_path: Path) -> None:
    folders = write_dcase(tmp_path, seconds=1.6)
    for kind in dcase_meta.EVENTS:
        path = meta(folders["devtest"], kind)
        path.write_text(path.read_text().replace("bg_classname: park", "bg_classname: beach"))
    expect(tmp_path, "no recording of the scene park in devtest")


def test_any_single_tag_folder_will_do(tmp_path: Path) -> None:
    folders = write_dcase(tmp_path, seconds=1.6)
    mine = folders["devtest"].rename(folders["devtest"].with_name("0123"))
    assert len(read(tmp_path).units.ids) == 18
    (mine.with_name("4567") / "meta").mkdir(parents=True)
    expect(tmp_path, "2 sets (0123, 4567) and not the official 20b255387a2d0cddc0a3dff5014875e7")
    mine.rename(folders["devtest"])
    assert len(read(tmp_path).units.ids) == 18, "the official one is preferred"


def test_faulty_mixtures_are_left_out_as_their_publishers_did(tmp_path: Path) -> None:
    folders = write_dcase(tmp_path, mixtures=4, seconds=1.6)
    before = read(tmp_path)
    names = [
        name_of(meta(folders["devtrain"], suffix="csv"), line_number) for line_number in (4, 5, 6)
    ]
    synthesizer = (
        tmp_path
        / "TUT-rare-sound-events-2017-development"
        / "TUT_Rare_sound_events_mixture_synthesizer"
    )
    synthesizer.mkdir()
    (synthesizer / "affected_files.txt").write_text(f"{names[0]}\n{names[1]}\n")
    # their patch takes a mixture from the list and renames its audio; the recipe stays
    for name in names[1:]:
        audio = folders["devtrain"] / "audio" / name
        audio.rename(f"{audio}_old_dontuse")
        path = meta(folders["devtrain"], suffix="csv")
        path.write_text(
            "".join(line for line in path.read_text().splitlines(True) if name not in line)
        )
    after = read(tmp_path)
    gone = {name.removesuffix(".wav") for name in names}
    assert set(before.units.ids) - set(after.units.ids) == gone
    assert "faulty recordings of the scene left out: 3" in after.notes
    assert not any("faulty" in note for note in before.notes)
    assert not any("faulty" in note for note in read(tmp_path, inlier=BEACH).notes)


def test_without_the_audio_libraries_one_error_names_the_extra(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(UserError, match=r"pip install noveltylab\[audio\]"):
        read(whole, cache=True)
    assert not list(tmp_path.iterdir())


def test_features_are_checked(whole: Path) -> None:
    expect(whole, "data.features cannot be 'logmal': did you mean 'logmel'?", features="logmal")


PLAUSIBLE = st.sampled_from(
    ["- ", "\n", "  ", "{", "}", "[", "]", ": ", ", ", "mixture_audio_filename", "bg_path", "bg_classname", "event_present",
     "true", "park", "mixture_devtest_gunshot_1.wav", "event_start_in_mixture_seconds", "event_length_seconds", "1.5",
     "-.inf", "\t", "gunshot", "&a ", "*a", "!!python/name:os.system ", "'", '"', "|", ">", "#", "---", "\0", "é", "1e999"]
)  # fmt: skip
TEXTS = st.one_of(
    st.binary(max_size=300),
    st.lists(PLAUSIBLE, max_size=40).map(lambda parts: "".join(parts).encode()),
)


@SETTINGS
@given(TEXTS)
def test_recipe_parser_raises_nothing_but_user_errors(content: bytes) -> None:
    with suppress(UserError):
        mixtures = dcase_meta.parse_recipes(content, WHERE, "devtest", "gunshot")
        assert all(
            name == mixture.name and 0 <= mixture.scene < 15 for name, mixture in mixtures.items()
        )


@SETTINGS
@given(TEXTS)
def test_event_list_parser_raises_nothing_but_user_errors(content: bytes) -> None:
    with suppress(UserError):
        spans = dcase_meta.parse_events(content, WHERE, "devtest", "gunshot")
        assert all(span is None or 0 <= span[0] < span[1] < math.inf for span in spans.values())


@SETTINGS
@given(
    st.lists(
        st.tuples(
            st.from_regex(r"[0-9a-z_]{1,40}", fullmatch=True),
            st.none() | st.tuples(st.floats(0, 1000), st.floats(0.001, 100)),
            st.sampled_from(dcase_meta.SCENES),
        ),
        max_size=8,
        unique_by=lambda row: row[0],
    )
)
def test_what_the_synthesizer_writes_is_read_back(
    rows: list[tuple[str, tuple[float, float] | None, str]],
) -> None:
    import yaml

    recipes, lines = [], ""
    for stem, event, scene in rows:
        name = f"mixture_evaltest_babycry_{stem}.wav"
        recipe = {"mixture_audio_filename": name, "bg_path": "audio/1.wav", "bg_classname": scene}
        recipe |= {"event_present": event is not None, "ebr": -math.inf, "annotation_string": name}
        if event:
            recipe |= {"event_start_in_mixture_seconds": event[0], "event_length_seconds": event[1]}
        lines += name + (f"\t{event[0]}\t{event[0] + event[1]}\tbabycry" if event else "") + "\n"
        recipes.append(recipe)
    spans = [event and (event[0], event[0] + event[1]) for _, event, _ in rows]
    mixtures = dcase_meta.parse_recipes(
        yaml.dump(recipes, default_flow_style=False).encode(), WHERE, "evaltest", "babycry"
    )
    assert [mixture.span for mixture in mixtures.values()] == spans
    assert [dcase_meta.SCENES[mixture.scene] for mixture in mixtures.values()] == [
        scene for _, _, scene in rows
    ]
    assert (
        list(dcase_meta.parse_events(lines.encode(), WHERE, "evaltest", "babycry").values())
        == spans
    )


# Whole runs.


@pytest.mark.parametrize(("data", "size"), [("dcase", 32), ("dcase_waveform", 64)])
def test_a_run_from_the_command(
    tmp_path: Path, whole: Path, run_here: Callable[..., dict[str, Any]], data: str, size: int
) -> None:
    options = ["protocol=scenes", "inlier=park", "trainer.accelerator=cpu", "method.components=4"]
    result = run_here(
        f"data={data}", "method=pca", f"data.root={whole}", "data.batch_size=4", *options
    )
    samples = read(whole, "logmel" if data == "dcase" else "waveform")
    tested = samples.labels[samples.official_test]
    assert result["n"]["test_outliers"] == (tested != PARK).sum() > 0
    assert result["n"]["test_inliers"] == (tested == PARK).sum() > 0
    assert result["scores"]["residual"]["auroc"] > 0.75, (
        "a loud tone stands out, unless it is cut off"
    )
    assert result["config"]["data"]["size"] == size
    assert result["data"] == data
    assert any("not the whole set" in warning for warning in result["warnings"])


def test_waves_are_not_resized(
    tmp_path: Path, whole: Path, run_here: Callable[..., dict[str, Any]]
) -> None:
    options = [
        "data=dcase",
        "data.features=waveform",
        "method=pca",
        f"data.root={whole}",
        "inlier=park",
    ]
    with pytest.raises(
        UserError, match="data.size=32: sound waves are not resized. Use data.size=64"
    ):
        run_here(*options)
    assert not (tmp_path / "outputs").exists()


def test_real_files() -> None:
    root = resolve_root(None)
    if not list(root.glob("TUT-rare-sound-events-2017-*")):
        pytest.skip("NOVELTYLAB_DATA names no folder with TUT Rare Sound Events 2017")
    samples = read(root, "waveform")
    for unit in range(0, len(samples.units.ids), 7):
        path = path_of(root, samples.units.ids[unit])
        fields = listed(path.parents[1])[path.name]
        inside = np.zeros(len(samples_of(path)), bool)
        if fields:
            inside[round(float(fields[0]) * 44100) : round(float(fields[1]) * 44100)] = True
        pieces = inside[: len(inside) // 4096 * 4096].reshape(-1, 4096).any(1)
        assert np.array_equal(samples.labels[samples.units.of == unit] != PARK, pieces)
