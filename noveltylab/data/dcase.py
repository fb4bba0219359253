"""DCASE 2017 task 2 (TUT Rare Sound Events 2017): the recordings of one acoustic scene, cut into
segments.

Two archives lie side by side as published; <tag> is a hash of the mixing parameters:
    <root>/TUT-rare-sound-events-2017-development/data/mixture_data/{devtrain,devtest}/<tag>/{audio,meta}
    <root>/TUT-rare-sound-events-2017-evaluation/data/mixture_data/evaltest/<tag>/{audio,meta}
or their zip archives as downloaded lie there, which are read in place. For each kind of event, meta
lists the mixtures with the times of their events, and has the recipes that they were mixed by: only
these know a mixture's scene. Of the 41 GB of audio, one scene's files are read. data=dcase gives
log-mel images, data=dcase_waveform the segments of 4,096 samples of the reference protocol (Rushe
and Mac Namee, ICASSP 2019).
"""

import hashlib
import io
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from torch import Tensor

from noveltylab.data.cache import Arrays, cached, code_key, fingerprint
from noveltylab.data.root import missing, resolve_root
from noveltylab.data.samples import Samples, Units
from noveltylab.data.stored import Stored, names_in, zip_members
from noveltylab.errors import UserError, nearest
from noveltylab.results.files import open_regular
from noveltylab.results.provenance import cores

SCENES = (
    "beach", "bus", "cafe/restaurant", "car", "city_center", "forest_path", "grocery_store", "home", "library",
    "metro_station", "office", "park", "residential_area", "train", "tram",
)  # fmt: skip
EVENTS = ("babycry", "glassbreak", "gunshot")
#: labels of segments with an event: 15, 16, 17; one without has its scene's
EVENT_LABELS = {event: len(SCENES) + i for i, event in enumerate(EVENTS)}
PARTS = ("devtrain", "devtest", "evaltest")
#: mixtures in each official part, and their seconds
MIXTURES, SECONDS = 1500, 30

#: samples per second; what is stored at another rate is resampled
RATE = 44_100
#: log-mel: window and hop in samples, mel bands, frames of one image
WINDOW, HOP, BANDS, FRAMES = 2048, 512, 64, 64
#: seconds by which event list and recipe may differ (and the event may outlast the file): they are
#: rounded
TOLERANCE = 1e-3

_DEVELOPMENT, _EVALUATION = (
    f"TUT-rare-sound-events-2017-{name}" for name in ("development", "evaluation")
)
_TAGS = {
    "devtrain": (_DEVELOPMENT, "20b255387a2d0cddc0a3dff5014875e7"),
    "devtest": (_DEVELOPMENT, "20b255387a2d0cddc0a3dff5014875e7"),
    "evaltest": (_EVALUATION, "bbb81504db15a03680a0044474633b67"),
}
_SIDE = 64
_RATES = (8_000, 384_000)
_MAX_META, _MAX_SOUND = 64 << 20, 1 << 30
#: amplitude of a sample, 1 in most files, 2**31 in floats that hold whole numbers; beyond it powers
#: overflow
LOUDEST = 2.0**31
_BY_HAND = (
    f"Put the archives of TUT Rare Sound Events 2017, development (doi 10.5281/zenodo.401395) and evaluation (doi "
    f"10.5281/zenodo.1160455), into the data folder, as they are ({_DEVELOPMENT}*.zip) or unpacked side by side "
    f"({_DEVELOPMENT} and {_EVALUATION}). They are not fetched."
)

_ACCEPT = "accept what is there with data.verify=false."
_FAULTY = "affected_files.txt"

#: onset and offset in seconds
Span = tuple[float, float]


@dataclass(frozen=True)
class Mixture:
    """One recording: a background of some scene (a label) with, perhaps, one event of its kind."""

    name: str
    part: str
    kind: str
    scene: int
    background: str
    span: Span | None

    @property
    def label(self) -> int:
        """Of the whole recording: its event's, else its scene's."""
        return self.scene if self.span is None else EVENT_LABELS[self.kind]


@dataclass(frozen=True)
class Cut:
    """Segments of `length` samples, one every `step` samples; what is left at the end is dropped."""

    length: int
    step: int

    def count(self, samples: int) -> int:
        """How many whole segments so many samples hold."""
        return max(0, (samples - self.length) // self.step + 1)

    def positive(self, count: int, span: Span | None) -> NDArray[np.bool_]:
        """Which of the first `count` segments share a sample with the event, samples round(onset *
        RATE) to the offset's.
        """
        if span is None:
            return np.zeros(count, np.bool_)
        first, last = (round(seconds * RATE) for seconds in span)
        starts = self.step * np.arange(count)
        return (starts < max(last, first + 1)) & (starts + self.length > first)


#: The frames of an image begin HOP samples apart and see WINDOW samples each, so that images
#: overlap by WINDOW - HOP.
CUTS = {
    "logmel": Cut((FRAMES - 1) * HOP + WINDOW, FRAMES * HOP),
    "waveform": Cut(_SIDE * _SIDE, _SIDE * _SIDE),
}


def read(
    root: Path | None, *, verify: bool, download: bool, features: str, inlier: int, cache: bool
) -> Samples:
    """Samples of the scene SCENES[inlier]: images (N, 1, 64, 64), devtrain first, each recording's
    segments in order.

    features "logmel": uint8 images of 64 mel bands (rows, the lowest first) and 64 frames (0.74 s),
    in decibels, scaled so that 0 and 255 are the extremes of devtrain's event-free segments; others
    are clipped to these. "waveform": int16, 4,096 samples (93 ms) as 64 rows of 64 (our choice, so
    that a wave passes where images do); 32768 is full scale.
    labels: the scene's, or 15 + its kind for a segment that an event overlaps. facts: part
    ("devtrain", ...), start of the segment and onset and offset of its recording's event in seconds
    (NaN without). units: the recordings.
    verify: no file of the scene may be missing, and counts other than the official ones are noted;
    there are no checksums. Without it missing files, and kinds of events without meta files, are
    counted. UserError for unusable files.
    """
    if features not in CUTS:
        raise UserError(f"data.features cannot be '{features}': {nearest(str(features), CUTS)}")
    root, cut = resolve_root(root), CUTS[features]
    if root.name in (_DEVELOPMENT, _EVALUATION):  # data.root is one of the set's own folders
        root = root.parent
    parts = {part: _read_part(root, part, verify) for part in PARTS}
    _check_backgrounds(parts.values())
    mixtures, absent, notes = _choose(root, parts, inlier, verify)
    files = [parts[mixture.part].present[mixture.name] for mixture in mixtures]

    def make() -> Arrays:
        return read_segments(files, mixtures, features)

    meta = [path for part in parts.values() for path in part.meta]
    key = {
        "code": code_key(("data.dcase",), ("numpy", "librosa", "soundfile")),
        "features": features,
        "scene": SCENES[inlier],
        "cut": [cut.length, cut.step],
    }
    key |= {"mel": [RATE, WINDOW, HOP, BANDS, FRAMES], "files": _fingerprint([*meta, *files], root)}
    arrays = cached("dcase", key, make) if cache else make()
    samples = _assemble(mixtures, cut, arrays, (*notes, *_heard(arrays, cut)))
    return replace(samples, verified=None if verify else False, missing=absent)


def _fingerprint(files: list[Stored], root: Path) -> str:
    """As `fingerprint`; of files in archives by these, and by their names."""
    members = [file.member for file in files if file.member]
    paths = list(dict.fromkeys(file.path for file in files))
    print_of_paths = fingerprint(paths, root)
    if not members:
        return print_of_paths
    return hashlib.sha256("\n".join([print_of_paths, *members]).encode()).hexdigest()


def _assemble(mixtures: list[Mixture], cut: Cut, arrays: Arrays, notes: tuple[str, ...]) -> Samples:
    counts = arrays["counts"].tolist()
    of = np.repeat(np.arange(len(mixtures)), counts)
    part = np.array([mixture.part for mixture in mixtures])
    label = np.array([mixture.label for mixture in mixtures], np.int64)
    spans = np.array([mixture.span or (math.nan, math.nan) for mixture in mixtures])
    stems = [mixture.name.removesuffix(".wav") for mixture in mixtures]
    positive = [
        cut.positive(count, mixture.span) for mixture, count in zip(mixtures, counts, strict=True)
    ]
    order = [range(count) for count in counts]
    return Samples(
        images=torch.from_numpy(arrays["images"]),
        labels=np.where(np.concatenate(positive), label[of], mixtures[0].scene),
        official_test=part[of] == "evaltest",
        ids=np.array(
            [
                f"{part[i]}/{stems[i]}/{at:04d}"
                for i, segments in enumerate(order)
                for at in segments
            ]
        ),
        verified=False,
        facts={
            "part": part[of],
            "start": np.concatenate([np.array(segments) for segments in order]) * cut.step / RATE,
            "onset": spans[of, 0],
            "offset": spans[of, 1],
        },
        units=Units("file", of, np.array(stems), label, np.array(stems), part == "evaltest"),
        notes=notes,
        scale=(float(arrays["scale"][0]), float(arrays["scale"][1])),
    )


class Track(NamedTuple):
    """A recording put together again from its segments, as figures.plot_recording takes it.

    picture: log-mel (64, frames) in [0, 1], or the wave's envelope (points,); seconds: their
    length; events: onsets and offsets; times (segments,): the middle of each segment in seconds.
    """

    picture: NDArray[np.float32]
    seconds: float
    events: list[Span]
    times: NDArray[np.float64]


def track(samples: Samples, unit: int) -> Track:
    """Recording `unit` (a position in samples.units), from the segments alone: the dropped end is
    missing.
    """
    assert samples.units is not None
    rows = np.flatnonzero(samples.units.of == unit)
    images = samples.images[torch.from_numpy(rows)].numpy()[:, 0]
    if wave := images.dtype == np.int16:
        picture = np.abs(images.reshape(-1, 4 * _SIDE).astype(np.float32)).max(1) / 32768
    else:
        picture = images.swapaxes(0, 1).reshape(BANDS, -1).astype(np.float32) / 255
    step = CUTS["waveform" if wave else "logmel"].step / RATE
    onset, offset = (float(samples.facts[name][rows[0]]) for name in ("onset", "offset"))
    events = [] if math.isnan(onset) else [(onset, offset)]
    return Track(picture, len(rows) * step, events, samples.facts["start"][rows] + step / 2)


# Meta files.


@dataclass(frozen=True)
class _Part:
    """What the meta files of one part say: `mixtures` to use; `withdrawn` ones, faulty; `present`,
    the audio files by name.

    `place`: where they lie, in words; `lost`: kinds of events without meta files.
    """

    name: str
    place: str
    meta: list[Stored]
    present: dict[str, Stored]
    mixtures: list[Mixture]
    withdrawn: list[Mixture]
    lost: list[str]


def _read_part(root: Path, part: str, verify: bool) -> _Part:
    archive, tag = _TAGS[part]
    parent = root / archive / "data" / "mixture_data" / part
    sets, lists = _stored(root, archive, part)
    tags = sorted(
        name for name, files in sets.items() if files["meta"] or (parent / name / "meta").is_dir()
    )
    if len(tags) > 1 and tag not in tags:
        raise UserError(
            f"{parent} holds {len(tags)} sets ({', '.join(tags[:3])}) and not the official {tag}; leave one."
        )
    chosen = tag if tag in tags or not tags else tags[0]
    files = sets.get(chosen, {"audio": {}, "meta": {}})
    if not files["audio"] or not files["meta"]:
        raise missing(f"{chosen}/audio and {chosen}/meta", parent, _BY_HAND)
    present = files["audio"]
    # the list of faulty mixtures lies beside the publishers' synthesizer
    faulty = {line.strip() for file in lists for line in _lines(file)}
    mixtures: list[Mixture] = []
    withdrawn: list[Mixture] = []
    lost: list[str] = []
    meta = list(lists)
    for kind in EVENTS:
        names = (f"event_list_{part}_{kind}.csv", f"mixture_recipes_{part}_{kind}.yaml")
        if absent := [name for name in names if name not in files["meta"]]:
            if verify:
                raise missing(
                    " and ".join(absent), parent / chosen / "meta", f"{_BY_HAND} Or {_ACCEPT}"
                )
            lost.append(kind)
            continue
        event_list, recipe_file = (files["meta"][name] for name in names)
        meta += [event_list, recipe_file]
        recipes = parse_recipes(recipe_file.read(_MAX_META), recipe_file, part, kind)
        spans = parse_events(event_list.read(_MAX_META), event_list, part, kind)
        # the publishers took faulty mixtures out of lists and audio, and left their recipes
        out = {
            name
            for name in recipes
            if name in faulty or (name not in spans and name not in present)
        }
        _check_same(recipes, spans, out, event_list)
        withdrawn += [recipe for name, recipe in recipes.items() if name in out]
        mixtures += [
            replace(recipe, span=spans[name]) for name, recipe in recipes.items() if name not in out
        ]
    place = str(
        next(iter(present.values())).path.parent if parent.is_dir() else root / f"{archive}*.zip"
    )
    return _Part(part, place, meta, present, mixtures, withdrawn, lost)


def _lines(file: Stored) -> list[str]:
    return file.read(_MAX_META).decode("utf-8", "replace").splitlines()


#: of one part: tag -> "audio" and "meta" -> name -> file
_Sets = dict[str, dict[str, dict[str, Stored]]]


def _stored(root: Path, archive: str, part: str) -> tuple[_Sets, list[Stored]]:
    """The files of a part, from the unpacked folder and from zip archives beside it, and the lists
    of faulty mixtures.
    """
    found: _Sets = {}
    lists: list[Stored] = []
    for name in names_in(root):
        if name.startswith(archive) and name.lower().endswith(".zip") and (root / name).is_file():
            _add_zip(root / name, part, found, lists)
    parent = root / archive / "data" / "mixture_data" / part
    for tag in names_in(parent):
        for kind in ("audio", "meta"):
            folder = parent / tag / kind
            files = {
                name: Stored(folder / name)
                for name in names_in(folder)
                if (folder / name).is_file()
            }
            found.setdefault(tag, {"audio": {}, "meta": {}})[kind].update(files)
    unpacked = [root / archive, *(root / archive / name for name in names_in(root / archive))]
    lists += [Stored(folder / _FAULTY) for folder in unpacked if (folder / _FAULTY).is_file()]
    return found, sorted(lists, key=str)


def _add_zip(path: Path, part: str, found: _Sets, lists: list[Stored]) -> None:
    for member, file in zip_members(path).items():
        if match := re.fullmatch(
            rf"(?:.*/)?mixture_data/{part}/([^/]+)/(audio|meta)/([^/]+)", member
        ):
            tag, kind, name = match.groups()
            found.setdefault(tag, {"audio": {}, "meta": {}})[kind][name] = file
        elif file.name == _FAULTY:
            lists.append(file)


def _check_same(
    recipes: Mapping[str, Mixture], spans: Mapping[str, Span | None], out: set[str], path: Stored
) -> None:
    """UserError unless the event list at `path` says what the recipes say, but for the withdrawn
    ones in `out`.
    """
    remedy = "Replace the meta files."
    if alone := spans.keys() - recipes.keys():
        raise UserError(
            f"{path} lists {min(alone)}, of which there is no recipe ({len(alone)} such). {remedy}"
        )
    if alone := recipes.keys() - spans.keys() - out:
        raise UserError(
            f"{path} does not list {min(alone)}, of which there is a recipe ({len(alone)} such). {remedy}"
        )
    for name in recipes.keys() - out:
        said, mixed = spans[name], recipes[name].span
        if (
            max(abs(a - b) for a, b in zip(said or (-1, -1), mixed or (-1, -1), strict=True))
            > TOLERANCE
        ):
            raise UserError(
                f"{path}: the event of {name} is at {_seconds(said)}, but its recipe has it at {_seconds(mixed)}. {remedy}"
            )


def _seconds(span: Span | None) -> str:
    return "no time (none)" if span is None else f"{span[0]:.6g} to {span[1]:.6g} s"


def parse_events(
    content: bytes, path: Path | Stored, part: str, kind: str
) -> dict[str, Span | None]:
    """Event list: name, onset, offset, kind of event, apart by tabs; the name alone without an
    event.

    Raises:
        UserError: a line is no such line, or a file is listed twice.
    """
    found: dict[str, Span | None] = {}
    for number, line in enumerate(_text(content, path).splitlines(), 1):
        fields = line.strip().split("\t")
        if fields == [""]:
            continue
        where = f"{path}, line {number}"
        name = _name(fields[0], where, part, kind)
        if name in found:
            raise UserError(f"{where}: {name} is listed twice. Replace the file.")
        if len(fields) not in (1, 4) or fields[3:] not in ([], [kind]):
            raise UserError(
                f"{where}: expected a name, or name, onset, offset and '{kind}', found {line[:80]!r}."
            )
        times = [_number(text, where) for text in fields[1:3]]
        found[name] = _span(times[0], times[1], where) if times else None
    return found


def parse_recipes(content: bytes, path: Path | Stored, part: str, kind: str) -> dict[str, Mixture]:
    """Recipes: a YAML list of flat mappings; name -> mixture.

    Only the parser's events are used: no object is ever built, tags and references are refused,
    nesting cannot recurse.

    Raises:
        UserError: the file is no such list, or a recipe lacks something or contradicts itself.
    """
    found: dict[str, Mixture] = {}
    for number, recipe in enumerate(_mappings(content, path), 1):
        where = f"{path}, recipe {number}"
        if (
            lacking := {"mixture_audio_filename", "bg_path", "bg_classname", "event_present"}
            - recipe.keys()
        ):
            raise UserError(
                f"{where}: has no {' and no '.join(sorted(lacking))}. Replace the file."
            )
        name = _name(recipe["mixture_audio_filename"], where, part, kind)
        if name in found:
            raise UserError(f"{where}: {name} is a second time in the file. Replace it.")
        if (present := recipe["event_present"].lower()) not in ("true", "false"):
            raise UserError(f"{where}: event_present must be true or false, not {present[:40]!r}.")
        span = None
        if present == "true":
            start, length = (
                recipe.get(f"event_{key}_seconds", "") for key in ("start_in_mixture", "length")
            )
            onset = _number(start, where)
            span = _span(onset, onset + _number(length, where), where)
        scene = _canonical(recipe["bg_classname"])
        if scene not in _BY_NAME:
            raise UserError(
                f"{where}: unknown scene {recipe['bg_classname'][:40]!r}; {nearest(scene, SCENES)}"
            )
        found[name] = Mixture(name, part, kind, _BY_NAME[scene], recipe["bg_path"], span)
    return found


def _mappings(content: bytes, path: Path | Stored) -> Iterator[dict[str, str]]:
    """The mappings of a YAML list, keys and values as text. UserError for anything else in it."""
    refused = f"{path} is no list of recipes"
    texts: list[str] = []
    place = "file"
    try:
        for event in yaml.parse(content, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
            kind = type(event).__name__.removesuffix("Event")
            if special := getattr(event, "tag", None) or getattr(event, "anchor", None):
                raise UserError(
                    f"{refused}: it uses the tag or reference {special[:80]!r}, which none needs. Replace it."
                )
            if (place, kind) == ("mapping", "Scalar"):
                texts.append(event.value)
            elif (place, kind) == ("mapping", "MappingEnd"):
                yield dict(zip(texts[::2], texts[1::2], strict=True))
                place = "list"
            elif (place, kind) == ("list", "MappingStart"):
                place, texts = "mapping", []
            elif (place, kind) == ("file", "SequenceStart"):
                place = "list"
            elif (place, kind) == ("list", "SequenceEnd"):
                place = "end"
            elif kind not in ("StreamStart", "StreamEnd", "DocumentStart", "DocumentEnd"):
                line = event.start_mark.line + 1
                raise UserError(
                    f"{refused} (line {line}: expected flat mappings in one list). Replace it."
                )
    except yaml.YAMLError as error:
        raise UserError(f"{refused} ({' '.join(str(error).split())[:200]}). Replace it.") from None
    if place != "end":
        raise UserError(f"{refused}: it is empty. Replace it.")


def _text(content: bytes, path: Path | Stored) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{path} is no text. Replace it.") from None


def _name(text: str, where: str, part: str, kind: str) -> str:
    """A mixture's file name, which cannot lead out of its folder."""
    if not re.fullmatch(rf"mixture_{part}_{kind}_[0-9A-Za-z_]{{1,100}}\.wav", text):
        raise UserError(
            f"{where}: expected a name such as mixture_{part}_{kind}_000_<md5>.wav, found {text[:80]!r}."
        )
    return text


def _number(text: str, where: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UserError(f"{where}: expected a time in seconds, found {text[:40]!r}.") from None


def _span(onset: float, offset: float, where: str) -> Span:
    if not 0 <= onset < offset < math.inf:
        raise UserError(f"{where}: an event cannot last from {onset:.6g} to {offset:.6g} s.")
    return onset, offset


def _canonical(scene: str) -> str:
    return re.sub(r"[\s/_-]+", "_", scene.strip().lower())


_BY_NAME = {_canonical(name): i for i, name in enumerate(SCENES)}


def _check_backgrounds(parts: Iterable[_Part]) -> None:
    """UserError if two parts were mixed over the same background recording: training would hear the
    test.
    """
    first: dict[str, str] = {}
    for part in parts:
        for mixture in part.mixtures:
            other = first.setdefault(mixture.background, part.name)
            if other != part.name:
                raise UserError(
                    f"The background {mixture.background} is used in {other} and in {part.name} ({mixture.name}): the "
                    "parts must not share recordings. Replace the meta files."
                )


def _choose(
    root: Path, parts: Mapping[str, _Part], scene: int, verify: bool
) -> tuple[list[Mixture], int, list[str]]:
    """The scene's mixtures, by part and kind, how many of them are missing, and notes on the copy.

    UserError if there are none, or a file is missing and `verify`.
    """
    found = {m.scene for part in parts.values() for m in part.mixtures if m.name in part.present}
    named = ", ".join(SCENES[i] for i in sorted(found))
    mixtures = [m for part in parts.values() for m in part.mixtures if m.scene == scene]
    if scene not in found:
        raise UserError(
            f"{root} holds no recording of the scene {SCENES[scene]}; scenes found: {named or 'none'}."
        )
    absent = 0
    for part in parts.values():
        mine = [m.name for m in mixtures if m.part == part.name]
        if not mine:
            raise UserError(
                f"{root} holds no recording of the scene {SCENES[scene]} in {part.name}, only in others."
            )
        lost = sorted(set(mine) - part.present.keys())
        if lost and (verify or len(lost) == len(mine)):
            accept = f", or {_ACCEPT}" if len(lost) < len(mine) else "."
            raise UserError(
                f"{part.place}: {len(lost)} of the {len(mine)} files of the scene {SCENES[scene]} are missing, the first is "
                f"{lost[0]}. Add them{accept}"
            )
        absent += len(lost)
    mixtures = [m for m in mixtures if m.name in parts[m.part].present]
    notes = []
    if absent:
        notes.append(f"recordings of the scene missing: {absent} of {absent + len(mixtures)}")
    if without := [f"{kind} in {part.name}" for part in parts.values() for kind in part.lost]:
        notes.append(f"events without meta files, left out: {', '.join(without)}")
    counts = {part.name: len(part.mixtures) + len(part.withdrawn) for part in parts.values()}
    if verify and any(count != MIXTURES for count in counts.values()):
        said = ", ".join(f"{count:,} in {part}" for part, count in counts.items())
        notes.append(
            f"not the whole set: {MIXTURES:,} mixtures expected in each part, found {said}"
        )
    if without_any := [name for i, name in enumerate(SCENES) if i not in found]:
        notes.append(f"scenes without recordings in the data: {', '.join(without_any)}")
    if faulty := sum(m.scene == scene for part in parts.values() for m in part.withdrawn):
        notes.append(f"faulty recordings of the scene left out: {faulty}")
    return mixtures, absent, notes


# Sound.


def read_segments(files: list[Stored], mixtures: list[Mixture], features: str) -> Arrays:
    """images (N, 1, 64, 64) as `read` has them; of each file counts (segments), frames, rates and
    channels (as stored); scale (2,), the decibels that 0 and 255 stand for.

    One file at a time is in memory for each core. Logmel reads devtrain twice, first for the scale:
    its extremes, with nothing of the test and no event in them.
    """
    sound = _libraries()
    cut = CUTS[features]
    headers = [_header(path, m.span, cut, sound) for path, m in zip(files, mixtures, strict=True)]
    counts = [cut.count(_resampled(frames, rate)) for frames, rate, _ in headers]
    ends = np.cumsum(counts)
    images = np.empty((ends[-1], 1, _SIDE, _SIDE), np.uint8 if features == "logmel" else np.int16)

    def segments(i: int) -> NDArray[np.float32]:
        return _segments(files[i], headers[i], features, sound)

    def extremes(i: int) -> Span:
        clean = segments(i)[~cut.positive(counts[i], mixtures[i].span)]
        return (float(clean.min()), float(clean.max())) if len(clean) else (math.inf, -math.inf)

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
            images[ends[i] - counts[i] : ends[i], 0] = _quantised(
                segments(i), features, (low, high)
            )

        for _ in pool.map(fill, range(len(files))):
            pass
    frames, rates, channels = np.array(headers).T
    found = {
        "images": images,
        "counts": np.array(counts),
        "frames": frames,
        "rates": rates,
        "channels": channels,
    }
    return found | {"scale": np.array([low, high])}


def read_recording(path: Path, features: str, scale: tuple[float, float]) -> Tensor:
    """The segments (n, 1, 64, 64) of one wav file, in order, made as those of a run with that scale
    (Samples.scale) were.

    UserError: it is no whole wav file, or shorter than one segment; or librosa or soundfile is
    missing.
    """
    sound = _libraries()
    file = Stored(path)
    header = _header(file, None, CUTS[features], sound)
    values = _quantised(_segments(file, header, features, sound), features, scale)
    return torch.from_numpy(
        values.astype(np.uint8 if features == "logmel" else np.int16)
    ).unsqueeze(1)


def _segments(
    path: Stored, header: tuple[int, int, int], features: str, sound: "_Sound"
) -> NDArray[np.float32]:
    """(n, 64, 64), in decibels or as sound."""
    wave, cut = _wave(path, header, sound), CUTS[features]
    count = cut.count(_resampled(*header[:2]))
    if features == "logmel":
        return _logmel(wave, count, sound)
    return wave[: count * cut.step].reshape(-1, _SIDE, _SIDE)


def _quantised(
    values: NDArray[np.float32], features: str, scale: tuple[float, float]
) -> NDArray[np.float32]:
    """As stored: 0 to 255 between the decibels of the scale, or sound times 32768; whole numbers."""
    low, high = scale
    ends, whole = (0, 255), np.rint((values - low) * (255 / max(high - low, 1e-6)))
    if features != "logmel":
        ends, whole = (-32768, 32767), np.rint(values * 32768)
    clipped: NDArray[np.float32] = np.clip(whole, *ends)
    return clipped


class _Sound(NamedTuple):
    """Functions of soundfile and librosa. Looked up once, before threads start: librosa imports its
    parts only then.
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
    except (
        ImportError,
        OSError,
    ) as error:  # soundfile raises OSError where its C library is missing
        raise UserError(
            f"data=dcase reads sound with librosa and soundfile, which cannot be used here ({error}). Install them with "
            "pip install noveltylab[audio]"
        ) from error
    mel = librosa.feature.melspectrogram
    return _Sound(soundfile.info, soundfile.read, librosa.resample, mel, librosa.power_to_db)


def _source(file: Stored) -> str | io.BytesIO:
    """A recording as soundfile takes it."""
    return io.BytesIO(file.read(_MAX_SOUND)) if file.member else str(file.path)


def _header(path: Stored, span: Span | None, cut: Cut, sound: _Sound) -> tuple[int, int, int]:
    """Frames, rate and channels of a wav file. UserError unless it is whole and long enough for its
    event.
    """
    source = _source(path)
    try:
        opened = open_regular(source) if isinstance(source, str) else source
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}).") from None
    with opened as file:
        head, size = file.read(12), file.seek(0, os.SEEK_END)
    if head[:4] != b"RIFF" or head[8:] != b"WAVE":
        raise UserError(
            f"{path} is not a wav file: expected it to start with RIFF....WAVE, found {head!r}. Replace it."
        )
    # libsndfile would read a truncated file without a word
    if (announced := int.from_bytes(head[4:8], "little") + 8) > size:
        raise UserError(
            f"{path} is truncated: its header announces {announced} bytes, found {size}. Replace it."
        )
    try:
        info = sound.info(_source(path))
    except RuntimeError as error:
        raise UserError(f"{path} is not a readable wav file ({error}). Replace it.") from None
    if not _RATES[0] <= info.samplerate <= _RATES[1]:
        raise UserError(
            f"{path}: expected {_RATES[0]} to {_RATES[1]} samples per second, found {info.samplerate}."
        )
    seconds = info.frames / info.samplerate
    if span is not None and span[1] > seconds + TOLERANCE:
        raise UserError(
            f"{path} lasts {seconds:.6g} s, but its event is at {_seconds(span)}. Replace it."
        )
    if not cut.count(_resampled(info.frames, info.samplerate)):
        raise UserError(
            f"{path} lasts {seconds:.6g} s, less than one segment ({cut.length / RATE:.3g} s). Replace it."
        )
    return info.frames, info.samplerate, info.channels


def _resampled(frames: int, rate: int) -> int:
    return -(-frames * RATE // rate)


def _wave(path: Stored, header: tuple[int, int, int], sound: _Sound) -> NDArray[np.float32]:
    """The sound as float32 (samples,) in [-1, 1] at RATE, the mean of its channels."""
    frames, rate, channels = header
    try:
        stored, _ = sound.read(_source(path), dtype="float32", always_2d=True)
    except RuntimeError as error:
        raise UserError(f"{path} is not a readable wav file ({error}). Replace it.") from None
    if stored.shape != (frames, channels) or not np.isfinite(stored).all():
        raise UserError(
            f"{path} is damaged: expected {frames} numbers in {channels} channels. Replace it."
        )
    if (loudest := float(np.abs(stored).max(initial=0))) > LOUDEST:
        raise UserError(
            f"{path} has samples up to {loudest:.3g}, and sound lies in [-1, 1]. Replace it."
        )
    wave: NDArray[np.float32] = stored.mean(1)
    if rate != RATE:
        # its length may be one off, by the rounding of the ratio
        wave = np.pad(sound.resample(wave, orig_sr=rate, target_sr=RATE), (0, 1))[
            : _resampled(frames, rate)
        ]
    return wave


def _logmel(wave: NDArray[np.float32], count: int, sound: _Sound) -> NDArray[np.float32]:
    """Power in decibels of the first `count` images, (count, BANDS, FRAMES); -100 dB is the least."""
    power = sound.melspectrogram(
        y=wave, sr=RATE, n_fft=WINDOW, hop_length=HOP, n_mels=BANDS, center=False, power=2.0
    )
    levels: NDArray[np.float32] = sound.power_to_db(power, ref=1.0, amin=1e-10, top_db=None)
    return levels[:, : count * FRAMES].reshape(BANDS, count, FRAMES).swapaxes(0, 1)


def _heard(arrays: Arrays, cut: Cut) -> list[str]:
    """Notes on what was found in the audio files and done to it."""
    frames, rates, channels = (arrays[name] for name in ("frames", "rates", "channels"))
    notes = []
    if (other := rates != RATE).any():
        said = ", ".join(f"{rate / 1000:g}" for rate in np.unique(rates[other]).tolist())
        notes.append(f"{int(other.sum())} files resampled to 44.1 kHz from {said} kHz")
    if several := int((channels > 1).sum()):
        notes.append(
            f"{several} files with more than one channel: the mean of the channels is used"
        )
    seconds = frames / rates
    if odd := int((np.abs(seconds - SECONDS) > 0.5).sum()):
        notes.append(
            f"{odd} files do not last {SECONDS} s ({seconds.min():.3g} to {seconds.max():.3g} s)"
        )
    left = float((seconds - arrays["counts"] * cut.step / RATE).max())
    if left >= 1 / RATE:
        notes.append(
            f"up to {left:.2g} s at the end of a file make no whole segment and are left out"
        )
    return notes
