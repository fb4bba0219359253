"""DCASE 2017 task 2: which recordings each official part has, and where their files lie.

The archives lie below the data folder, unpacked or as zip files (see dcase.py for the layout).
"""

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from noveltylab.data.dcase_meta import EVENTS, Mixture, check_same, parse_events, parse_recipes
from noveltylab.data.stored import Stored, missing, names_in, zip_members
from noveltylab.errors import UserError

PARTS = ("devtrain", "devtest", "evaltest")
DEVELOPMENT = "TUT-rare-sound-events-2017-development"
EVALUATION = "TUT-rare-sound-events-2017-evaluation"
ACCEPT = "accept what is there with data.verify=false."

#: of each part: its archive, and the official hash of the mixing parameters
_ARCHIVES = {
    "devtrain": (DEVELOPMENT, "20b255387a2d0cddc0a3dff5014875e7"),
    "devtest": (DEVELOPMENT, "20b255387a2d0cddc0a3dff5014875e7"),
    "evaltest": (EVALUATION, "bbb81504db15a03680a0044474633b67"),
}
#: bytes that a meta file may have
_MAX_META = 64 << 20
#: the list of faulty mixtures, which lies beside the publishers' synthesizer
_FAULTY = "affected_files.txt"
_BY_HAND = (
    "Put the archives of TUT Rare Sound Events 2017, development (doi 10.5281/zenodo.401395) and "
    "evaluation (doi 10.5281/zenodo.1160455), into the data folder, as they are "
    f"({DEVELOPMENT}*.zip) or unpacked side by side ({DEVELOPMENT} and {EVALUATION}). "
    "They are not fetched."
)


@dataclass(frozen=True)
class Part:
    """What the meta files of one official part say, and which of its files are there.

    place: where the recordings lie, in words; meta: the meta files; present: the recordings by
    name; mixtures: those to use; withdrawn: faulty ones; lost: kinds of events without meta files.
    """

    name: str
    place: str
    meta: list[Stored]
    present: dict[str, Stored]
    mixtures: list[Mixture]
    withdrawn: list[Mixture]
    lost: list[str]


@dataclass(frozen=True)
class _Set:
    """The files of a part that were mixed with the same parameters, by name."""

    audio: dict[str, Stored] = field(default_factory=dict)
    meta: dict[str, Stored] = field(default_factory=dict)

    def of_kind(self, kind: str) -> dict[str, Stored]:
        """The files of a folder, "audio" or "meta"."""
        return self.audio if kind == "audio" else self.meta


#: hash of the mixing parameters -> set
_Sets = defaultdict[str, _Set]


def read_part(root: Path, part: str, verify: bool) -> Part:
    """Read the meta files of one part.

    Args:
        root: The data folder.
        part: One of PARTS.
        verify: The meta files of every kind of event must be there.

    Raises:
        UserError: files are missing, or cannot be read, or contradict each other.
    """
    archive, official_tag = _ARCHIVES[part]
    parent = _mixture_folder(root, archive, part)
    sets, faulty_lists = _find_files(root, archive, part)
    tag = _choose_tag(parent, sets, official_tag)
    files = sets.get(tag, _Set())
    if not files.audio or not files.meta:
        raise missing(f"{tag}/audio and {tag}/meta", parent, _BY_HAND)
    faulty: set[str] = set()
    for file in faulty_lists:
        faulty.update(map(str.strip, _lines(file)))

    mixtures: list[Mixture] = []
    withdrawn: list[Mixture] = []
    lost: list[str] = []
    meta = list(faulty_lists)
    for kind in EVENTS:
        names = (f"event_list_{part}_{kind}.csv", f"mixture_recipes_{part}_{kind}.yaml")
        absent = [name for name in names if name not in files.meta]
        if absent and verify:
            remedy = f"{_BY_HAND} Or {ACCEPT}"
            raise missing(" and ".join(absent), parent / tag / "meta", remedy)
        if absent:
            lost.append(kind)
            continue
        event_file, recipe_file = files.meta[names[0]], files.meta[names[1]]
        meta += [event_file, recipe_file]
        recipes = parse_recipes(recipe_file.read(_MAX_META), recipe_file, part, kind)
        spans = parse_events(event_file.read(_MAX_META), event_file, part, kind)
        # the publishers took faulty mixtures out of lists and audio, and left their recipes
        absent_names = recipes.keys() - spans.keys() - files.audio.keys()
        withdrawn_names = (recipes.keys() & faulty) | absent_names
        check_same(recipes, spans, withdrawn_names, event_file)
        for name, recipe in recipes.items():
            if name in withdrawn_names:
                withdrawn.append(recipe)
            else:
                mixtures.append(replace(recipe, span=spans[name]))

    place = str(root / f"{archive}*.zip")
    if parent.is_dir():
        place = str(next(iter(files.audio.values())).path.parent)
    return Part(part, place, meta, files.audio, mixtures, withdrawn, lost)


def check_backgrounds(parts: Iterable[Part]) -> None:
    """Check that no two parts were mixed over the same recording: training would hear the test.

    Raises:
        UserError: two parts were.
    """
    users: dict[str, str] = {}
    for part in parts:
        for mixture in part.mixtures:
            user = users.setdefault(mixture.background, part.name)
            if user != part.name:
                raise UserError(
                    f"The background {mixture.background} is used in {user} and in {part.name} "
                    f"({mixture.name}): the parts must not share recordings. "
                    "Replace the meta files."
                )


def _mixture_folder(root: Path, archive: str, part: str) -> Path:
    return root / archive / "data" / "mixture_data" / part


def _choose_tag(parent: Path, sets: _Sets, official_tag: str) -> str:
    """The official set if it is there or if there is none, else the only one."""
    tags = sorted(tag for tag in sets if sets[tag].meta or (parent / tag / "meta").is_dir())
    if official_tag in tags or not tags:
        return official_tag
    if len(tags) > 1:
        raise UserError(
            f"{parent} holds {len(tags)} sets ({', '.join(tags[:3])}) and not the official "
            f"{official_tag}; leave one."
        )
    return tags[0]


def _find_files(root: Path, archive: str, part: str) -> tuple[_Sets, list[Stored]]:
    """The files of a part, from its folder and zip archives, and the lists of faulty mixtures."""
    sets: _Sets = defaultdict(_Set)
    faulty_lists: list[Stored] = []
    # zip archives
    for name in names_in(root):
        is_zip = name.startswith(archive) and name.lower().endswith(".zip")
        if is_zip and (root / name).is_file():
            _add_zip(root / name, part, sets, faulty_lists)
    # the unpacked folder, whose files take the place of those in archives
    parent = _mixture_folder(root, archive, part)
    for tag in names_in(parent):
        for kind in ("audio", "meta"):
            folder = parent / tag / kind
            files = sets[tag].of_kind(kind)  # a set of its own, also where it is empty
            for name in names_in(folder):
                if (folder / name).is_file():
                    files[name] = Stored(folder / name)
    for name in (".", *names_in(root / archive)):
        path = root / archive / name / _FAULTY
        if path.is_file():
            faulty_lists.append(Stored(path))
    return sets, sorted(faulty_lists, key=str)


def _add_zip(path: Path, part: str, sets: _Sets, faulty_lists: list[Stored]) -> None:
    pattern = re.compile(rf"(?:.*/)?mixture_data/{part}/([^/]+)/(audio|meta)/([^/]+)")
    for member, file in zip_members(path).items():
        match = pattern.fullmatch(member)
        if match:
            tag, kind, name = match.groups()
            sets[tag].of_kind(kind)[name] = file
        elif file.name == _FAULTY:
            faulty_lists.append(file)


def _lines(file: Stored) -> list[str]:
    return file.read(_MAX_META).decode("utf-8", "replace").splitlines()
