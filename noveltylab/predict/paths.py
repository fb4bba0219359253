"""Which files an input names, found by their names alone: nothing is read, and no torch is needed."""

import glob
import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from noveltylab.data.layout import SUFFIXES, shown, walk_images
from noveltylab.errors import UserError, in_one_line

Kind = Literal["image", "frame", "recording"]
VIDEOS = {".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv"}
SOUNDS = {".wav"}


@dataclass(frozen=True)
class Takes:
    """The kind of file that a run takes: images and videos, or recordings."""

    kind: Kind

    @property
    def suffixes(self) -> set[str]:
        if self.kind == "recording":
            return SOUNDS
        return SUFFIXES | VIDEOS

    @property
    def words(self) -> str:
        """The kinds of file, in words."""
        if self.kind == "recording":
            return "recordings (wav)"
        return "images and videos"


def kind_of_files(input_kind: object) -> Kind:
    """The kind of file of a run whose result says what its images are (`input.kind`)."""
    return "recording" if input_kind == "file" else "image"


def expand(source: str, takes: Takes) -> Iterator[Path]:
    """The files that an input names, in order.

    An input is a file, a folder (with its subfolders), or a pattern such as parts/**/*.png.
    Of folders only what a run takes, by the names; a pattern may name anything.

    Raises:
        UserError: At once, if nothing is found.
    """
    paths = _expand(source, takes)
    first = next(paths, None)
    if first is None:
        path = Path(source).expanduser()
        mistake = "no such file or folder"
        if path.is_dir():
            mistake = f"holds no {takes.words} ({', '.join(sorted(takes.suffixes))})"
        if glob.has_magic(source) and not path.exists():
            mistake = "no file fits this pattern"
            if "[" in source:
                mistake += " (a bracket that belongs to a name is written [[])"
        raise UserError(f"input={shown(source)}: {mistake}; this run takes {takes.words}")
    unsuited = (SOUNDS | VIDEOS | SUFFIXES) - takes.suffixes
    if first == Path(source).expanduser() and first.suffix.lower() in unsuited:
        raise UserError(f"input={shown(source)}: this run takes {takes.words}")
    return itertools.chain([first], paths)


def _expand(source: str, takes: Takes) -> Iterator[Path]:
    try:
        path = Path(source).expanduser()
        if path.is_dir():
            yield from walk(path, takes)
        elif os.path.lexists(path):
            yield path
        elif glob.has_magic(source):
            pattern = literal_folders(os.path.expanduser(source))
            yield from _closed_folders(pattern)
            for name in sorted(glob.iglob(pattern, recursive=True)):
                if not os.path.isdir(name):
                    yield Path(name)
                elif "**" not in source:  # which lists what is in them as well
                    yield from walk(Path(name), takes)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(
            f"input={shown(source)}: cannot be looked into ({in_one_line(error)})"
        ) from None


def literal_folders(pattern: str) -> str:
    """The pattern with brackets escaped in the names of folders that exist, such as `a[1]`."""
    names = pattern.replace(os.sep, "/").split("/")
    escaped = []
    for position, name in enumerate(names[:-1]):
        literal = os.path.isdir("/".join(names[: position + 1]))
        if glob.has_magic(name) and not literal:
            break
        escaped.append(glob.escape(name))
    return "/".join([*escaped, *names[len(escaped) :]])


def walk(folder: Path, takes: Takes) -> Iterator[Path]:
    """The files below a folder, and then the folders in it that cannot be looked into."""
    further = takes.suffixes - SUFFIXES
    unreadable: list[OSError] = []
    for path in walk_images(folder, further, unreadable):
        if path.suffix.lower() in takes.suffixes:
            yield path
    yield from (Path(error.filename) for error in unreadable)


def _closed_folders(pattern: str) -> Iterator[Path]:
    """The folders on a pattern's way that cannot be looked into, which glob passes over."""
    above = os.path.dirname(pattern)
    while glob.has_magic(above):
        for name in sorted(glob.iglob(above, recursive=True)):
            if os.path.isdir(name) and closed(Path(name)):
                yield Path(name)
        above = os.path.dirname(above)


def closed(folder: Path) -> str | None:
    """Why a folder cannot be looked into; None if it can."""
    try:
        os.scandir(folder).close()
    except OSError as error:
        return f"this folder cannot be looked into ({in_one_line(error)})"
    return None
