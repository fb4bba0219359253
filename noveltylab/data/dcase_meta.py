"""DCASE 2017 task 2: the meta files, which say what each recording was mixed of.

An event list has the times of the events of one kind, a file of recipes the backgrounds (and so
the scenes) and the same times again.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import yaml

from noveltylab.data.stored import Stored
from noveltylab.errors import UserError, nearest

SCENES = (
    "beach",
    "bus",
    "cafe/restaurant",
    "car",
    "city_center",
    "forest_path",
    "grocery_store",
    "home",
    "library",
    "metro_station",
    "office",
    "park",
    "residential_area",
    "train",
    "tram",
)
EVENTS = ("babycry", "glassbreak", "gunshot")
#: labels of segments with an event: 15, 16, 17; one without has its scene's
EVENT_LABELS = {event: len(SCENES) + i for i, event in enumerate(EVENTS)}
#: seconds by which event list and recipe may differ (and the event may outlast the file): they are
#: rounded
TOLERANCE = 1e-3

#: onset and offset in seconds
Span = tuple[float, float]

_RECIPE_KEYS = {"mixture_audio_filename", "bg_path", "bg_classname", "event_present"}

_SAFE_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _TextLoader(_SAFE_LOADER):  # type: ignore[misc]  # either of two classes
    """PyYAML's safe loader, which refuses tags, with every value as text."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}


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
        """The label of the whole recording: its event's, else its scene's."""
        if self.span is None:
            return self.scene
        return EVENT_LABELS[self.kind]


def parse_events(
    content: bytes, path: Path | Stored, part: str, kind: str
) -> dict[str, Span | None]:
    """The event list: a name alone, or name, onset, offset and kind of event, apart by tabs.

    Returns:
        The name of each recording and the time of its event, None without one.

    Raises:
        UserError: a line is no such line, or a file is listed twice.
    """
    spans: dict[str, Span | None] = {}
    for number, line in enumerate(_text(content, path).splitlines(), 1):
        fields = line.strip().split("\t")
        if fields == [""]:
            continue
        where = f"{path}, line {number}"
        name = _name(fields[0], where, part, kind)
        if name in spans:
            raise UserError(f"{where}: {name} is listed twice. Replace the file.")
        if len(fields) not in (1, 4) or fields[3:] not in ([], [kind]):
            raise UserError(
                f"{where}: expected a name, or name, onset, offset and '{kind}', "
                f"found {line[:80]!r}."
            )
        spans[name] = None
        if len(fields) == 4:
            onset = _number(fields[1], where)
            offset = _number(fields[2], where)
            spans[name] = _span(onset, offset, where)
    return spans


def parse_recipes(content: bytes, path: Path | Stored, part: str, kind: str) -> dict[str, Mixture]:
    """The recipes, a YAML list of flat mappings, as name -> mixture.

    Raises:
        UserError: the file is no such list, or a recipe lacks something or contradicts itself.
    """
    mixtures: dict[str, Mixture] = {}
    for number, recipe in enumerate(_load_recipes(content, path), 1):
        mixture = _mixture(recipe, f"{path}, recipe {number}", part, kind)
        if mixture.name in mixtures:
            raise UserError(
                f"{path}, recipe {number}: {mixture.name} is a second time in the file. Replace it."
            )
        mixtures[mixture.name] = mixture
    return mixtures


def check_same(
    recipes: Mapping[str, Mixture],
    spans: Mapping[str, Span | None],
    withdrawn: set[str],
    path: Stored,
) -> None:
    """Check that the event list at `path` says what the recipes say, but for withdrawn ones.

    Raises:
        UserError: one of the two lacks a recording, or they differ in a time.
    """
    remedy = "Replace the meta files."
    unexplained = spans.keys() - recipes.keys()
    if unexplained:
        raise UserError(
            f"{path} lists {min(unexplained)}, of which there is no recipe "
            f"({len(unexplained)} such). {remedy}"
        )
    unlisted = recipes.keys() - spans.keys() - withdrawn
    if unlisted:
        raise UserError(
            f"{path} does not list {min(unlisted)}, of which there is a recipe "
            f"({len(unlisted)} such). {remedy}"
        )
    for name in recipes.keys() - withdrawn:
        listed_span, recipe_span = spans[name], recipes[name].span
        onset, offset = listed_span or (-1, -1)
        recipe_onset, recipe_offset = recipe_span or (-1, -1)
        if max(abs(onset - recipe_onset), abs(offset - recipe_offset)) > TOLERANCE:
            raise UserError(
                f"{path}: the event of {name} is at {in_seconds(listed_span)}, "
                f"but its recipe has it at {in_seconds(recipe_span)}. {remedy}"
            )


def in_seconds(span: Span | None) -> str:
    """The times of an event as an error says them."""
    if span is None:
        return "no time (none)"
    return f"{span[0]:.6g} to {span[1]:.6g} s"


def _mixture(recipe: Mapping[str, str], where: str, part: str, kind: str) -> Mixture:
    absent = _RECIPE_KEYS - recipe.keys()
    if absent:
        raise UserError(f"{where}: has no {' and no '.join(sorted(absent))}. Replace the file.")
    name = _name(recipe["mixture_audio_filename"], where, part, kind)
    present = recipe["event_present"].lower()
    if present not in ("true", "false"):
        raise UserError(f"{where}: event_present must be true or false, not {present[:40]!r}.")
    span = None
    if present == "true":
        onset = _number(recipe.get("event_start_in_mixture_seconds", ""), where)
        length = _number(recipe.get("event_length_seconds", ""), where)
        span = _span(onset, onset + length, where)
    scene = _canonical(recipe["bg_classname"])
    if scene not in _SCENE_LABELS:
        raise UserError(
            f"{where}: unknown scene {recipe['bg_classname'][:40]!r}; {nearest(scene, SCENES)}"
        )
    return Mixture(name, part, kind, _SCENE_LABELS[scene], recipe["bg_path"], span)


def _load_recipes(content: bytes, path: Path | Stored) -> list[dict[str, str]]:
    """The mappings of a YAML list, keys and values as text; UserError for anything else."""
    refusal = f"{path} is no list of recipes"
    try:
        recipes = yaml.load(content, Loader=_TextLoader)
    except (yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{refusal} ({' '.join(str(error).split())[:200]}). Replace it.") from None
    if recipes is None:
        raise UserError(f"{refusal}: it is empty. Replace it.")
    if not isinstance(recipes, list):
        raise UserError(f"{refusal}: expected flat mappings in one list. Replace it.")
    for number, recipe in enumerate(recipes, 1):
        is_flat = isinstance(recipe, dict)
        if is_flat:
            is_flat = {type(text) for text in (*recipe, *recipe.values())} <= {str}
        if not is_flat:
            raise UserError(
                f"{refusal} (entry {number}: expected flat mappings in one list). Replace it."
            )
    return recipes


def _text(content: bytes, path: Path | Stored) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{path} is no text. Replace it.") from None


def _name(text: str, where: str, part: str, kind: str) -> str:
    """A mixture's file name, which cannot lead out of its folder."""
    if not re.fullmatch(rf"mixture_{part}_{kind}_[0-9A-Za-z_]{{1,100}}\.wav", text):
        raise UserError(
            f"{where}: expected a name such as mixture_{part}_{kind}_000_<md5>.wav, "
            f"found {text[:80]!r}."
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


_SCENE_LABELS = {_canonical(name): label for label, name in enumerate(SCENES)}
