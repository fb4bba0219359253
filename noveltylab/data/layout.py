"""How a folder of somebody's own images is laid out, from names alone: neither torch nor an image is loaded.

    <root>/train/<class>/*, <root>/test/<class>/*     as MVTec AD has them (train/good,
    test/<defect>), or any classes <root>/train/*, <root>/test/<class>/*             images right in
    train/ are the class "good" <root>/<class>/*                                  classes without an
    official test part <root>/*                                          one flat folder of good
    images

`train` and `test` may be written in capitals. Images may lie deeper in a class's folder. Class
folders with images win over pictures beside them. Hidden files are passed over; what else is left
out can be asked for (`Layout.left_out`).
"""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from noveltylab.errors import UserError

#: names that count as images; the decoder goes by the content, whatever the name
SUFFIXES = {
    *(
        ".png",
        ".apng",
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jif",
        ".jfif",
        ".jfi",
        ".bmp",
        ".dib",
        ".tif",
        ".tiff",
    ),
    *(".webp", ".gif", ".ppm", ".pgm", ".pbm", ".pnm"),
}
#: files that lie beside images and are none
_BESIDE = {
    *(
        ".txt",
        ".md",
        ".rst",
        ".csv",
        ".tsv",
        ".json",
        ".jsonl",
        ".xml",
        ".yaml",
        ".yml",
        ".html",
        ".htm",
        ".log",
    ),
    *(
        ".ini",
        ".cfg",
        ".toml",
        ".db",
        ".py",
        ".sh",
        ".bat",
        ".ipynb",
        ".lnk",
        ".url",
        ".sha256",
        ".md5",
    ),
}
GOOD = "good"
#: class folders of these names, in any case, are the good ones
GOOD_NAMES = {GOOD, "normal", "ok"}
#: a folder of MVTec AD that holds masks
_MASKS = "ground_truth"
#: names in a message
_NAMED = 3


@dataclass(frozen=True)
class Layout:
    """Class name -> its folder, in the training part and in the test part (None without one).

    flat: of the top folder only; stray: images beside the class folders; parts: all folders that
        belong to the layout;
    unused: folders with images that do not.
    """

    root: Path
    train: dict[str, Path]
    test: dict[str, Path] | None
    parts: tuple[Path, ...]
    flat: bool = False
    stray: tuple[Path, ...] = ()
    unused: tuple[Path, ...] = ()

    @property
    def classes(self) -> list[str]:
        """The class names by label: those of the training part first."""
        return list(dict.fromkeys([*self.train, *(self.test or {})]))

    @property
    def good(self) -> str:
        """The class that trains where none is named. UserError where that is not clear: names the
        classes.
        """
        good = [name for name in self.classes if name.casefold() in GOOD_NAMES]
        if len(good) == 1 and good[0] in self.train:
            name = good[0]
        elif len(self.train) == 1 and len(good) < 2:
            (name,) = self.train
        else:
            which = (
                f"{_listed(good)} are all called good"
                if len(good) > 1
                else "none is called good, normal or ok"
            )
            raise UserError(
                f"data.root={self.root}: it has the classes {_listed(self.classes, 20)}, and {which}; say which one trains, "
                "e.g. inlier=<name>"
            )
        if len(self.stray) > sum(1 for _ in walk_images(self.train[name])):
            raise UserError(
                f"data.root={self.root}: {len(self.stray)} images lie beside its folders ({_paths(self.stray)}), more than in "
                f"{name}/; move either away, or say inlier={name}"
            )
        return name

    def files(self) -> Iterator[tuple[Path, int, bool]]:
        """(path, label, of the test part) of every image, sorted within each class.

        UserError, after the last one, where a folder cannot be looked into.
        """
        labels = {name: label for label, name in enumerate(self.classes)}
        unreadable: list[OSError] = []
        for part, tested in ((self.train, False), (self.test or {}, True)):
            for name, folder in part.items():
                paths = (
                    sorted(_images_in(folder))
                    if self.flat
                    else walk_images(folder, unreadable=unreadable)
                )
                yield from ((path, labels[name], tested) for path in paths)
        if unreadable:
            raise UserError(
                f"{len(unreadable)} folders cannot be looked into: {_failures(unreadable)}; make them readable, or move "
                "them away"
            )

    def left_out(self) -> list[str]:
        """Sentences on what lies in the folder and is not read."""
        kinds: Counter[str] = Counter()
        links: list[Path] = []
        for part in self.parts:
            _count(part, kinds, links)
        notes = []
        if kinds:
            notes.append(
                f"left out: {sum(kinds.values())} files of kinds that are not read ({_kinds(kinds)}); convert them to PNG"
            )
        if links:
            notes.append(f"left out: {len(links)} links to folders ({_paths(links)})")
        if self.stray:
            notes.append(
                f"left out: {len(self.stray)} images beside the class folders ({_paths(self.stray)})"
            )
        if self.unused:
            notes.append(
                f"left out: folders that are neither train nor test ({_paths(self.unused)})"
            )
        return notes


def find_layout(root: str | Path | None) -> Layout:
    """The layout of a folder. UserError where there is none: says what was found and what is
    expected.
    """
    if root is None:
        raise UserError(
            "data=folder needs data.root, the folder of your images; e.g. data.root=~/parts"
        )
    try:
        root = Path(root).expanduser()
        if not root.is_dir():
            found = "a file" if root.exists() else "no such folder"
            raise UserError(f"data.root={root}: {found}; name the folder of your images")
        return _find(root)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"data.root={root}: cannot be looked into ({error})") from None


def _find(root: Path) -> Layout:
    folders = _folders_in(root)
    train, test = (_part(root, folders, name) for name in ("train", "test"))
    if train is not None:
        return _find_parts(root, folders, train, test)
    if test is not None:
        raise UserError(
            f"data.root={root}: has {test.name}/ but no train/; put good images into {root / 'train' / GOOD}"
        )
    for folder in folders.values():
        if _part(folder, _folders_in(folder, unreadable=True), "train"):
            raise UserError(
                f"data.root={root}: holds several sets, such as {folder.name}; choose one: data.root={folder}"
            )
    beside = tuple(sorted(_images_in(root)))
    if classes := {name: folder for name, folder in folders.items() if has_images(folder)}:
        return Layout(root, classes, None, (root,), stray=beside)
    if beside:
        return Layout(root, {GOOD: root}, None, (root,), flat=True)
    names = sorted(os.listdir(root))
    found = f"found {len(names)} entries, such as {shown(names[0])}" if names else "it is empty"
    raise UserError(
        f"data.root={root}: no images ({', '.join(sorted(SUFFIXES))}); {found}{_of_other_kinds(root)}. Expected train/good "
        "and test/<kind>, train/<class> and test/<class>, <class>, or images in the folder itself"
    )


def _find_parts(root: Path, folders: dict[str, Path], train: Path, test: Path | None) -> Layout:
    """The layout of a folder with a training part and, perhaps, a test part."""
    classes = {name: folder for name, folder in _folders_in(train).items() if has_images(folder)}
    beside = sorted(_images_in(train))
    if not classes and not beside:
        raise UserError(
            f"{train}: holds no images{_of_other_kinds(train)}; put good ones into {train / GOOD}"
        )
    if not classes:
        classes, beside = {GOOD: train}, []
    kinds = (
        {name: folder for name, folder in _folders_in(test).items() if has_images(folder)}
        if test
        else {}
    )
    if test is not None and (loose := sorted(_images_in(test))):
        if not kinds:
            raise UserError(
                f"{test}: its images lie in no folder; put them into {test / GOOD} and {test / '<kind>'}"
            )
        beside += loose
    used = (train, test, *(folder for name, folder in folders.items() if name.casefold() == _MASKS))
    unused = tuple(
        folder for folder in folders.values() if folder not in used and has_images(folder)
    )
    stray = (*sorted(_images_in(root)), *beside)
    parts = (train,) if test is None else (train, test)
    return Layout(root, classes, kinds or None, parts, stray=stray, unused=unused)


def _part(root: Path, folders: dict[str, Path], name: str) -> Path | None:
    """The folder called `name`, in any case; None without one. UserError where several are."""
    same = [folder for key, folder in folders.items() if key.casefold() == name]
    if len(same) > 1:
        raise UserError(
            f"data.root={root}: holds {_listed([folder.name for folder in same])}; leave one of them"
        )
    return same[0] if same else None


def shown(name: str | Path) -> str:
    """A name as one line of printable text: what a terminal, a CSV file or an encoding would trip
    over is escaped.
    """
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return "".join(
        sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text
    )


def is_image_name(name: str) -> bool:
    """Whether a file of that name counts as an image."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES


def walk_images(
    folder: Path,
    named: frozenset[str] | set[str] = frozenset(),
    unreadable: list[OSError] | None = None,
) -> Iterator[Path]:
    """The images below a folder, one subfolder after the other, sorted; `named`: further suffixes
    that count.

    Links to folders are not followed, so that a loop of them has an end. A folder that cannot be
    looked into is added to `unreadable`; without that list it is an OSError.
    """
    for path, folders, files in os.walk(
        folder, onerror=_raise if unreadable is None else unreadable.append
    ):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if is_image_name(name) or (
                not name.startswith(".") and os.path.splitext(name)[1].lower() in named
            ):
                yield Path(path, name)


def _raise(error: OSError) -> None:
    raise error


def has_images(folder: Path) -> bool:
    """Whether there are any, or may be some in a folder that cannot be looked into."""
    unreadable: list[OSError] = []
    return next(walk_images(folder, unreadable=unreadable), None) is not None or bool(unreadable)


def _images_in(folder: Path) -> Iterator[Path]:
    with os.scandir(folder) as entries:
        for entry in entries:
            # entry.is_dir() would raise for a loop of links, which is a file that cannot be read
            if is_image_name(entry.name) and not os.path.isdir(entry.path):
                yield Path(entry.path)


def _folders_in(folder: Path, unreadable: bool = False) -> dict[str, Path]:
    """Name as shown -> path, without hidden ones, numbers in their order; unreadable: none is no
    error.
    """
    try:
        names = os.listdir(folder)
    except OSError:
        if not unreadable:
            raise
        names = []
    found = [
        folder / name for name in names if not name.startswith(".") and os.path.isdir(folder / name)
    ]
    return {
        shown(path.name).replace("/", "_"): path
        for path in sorted(found, key=lambda path: _order(path.name))
    }


def _order(name: str) -> tuple[bool, int, str]:
    number = name.isascii() and name.isdecimal()
    return not number, int(name) if number else 0, name


def _count(folder: Path, kinds: Counter[str], links: list[Path]) -> None:
    """Adds the files below a folder that are not read, by suffix, and the links to folders, which
    are not followed.
    """
    for path, folders, files in os.walk(
        folder, onerror=lambda error: None
    ):  # said where the images are read
        folders[:] = [name for name in folders if not name.startswith(".")]
        links += [Path(path, name) for name in folders if os.path.islink(os.path.join(path, name))]
        for name in files:
            suffix = os.path.splitext(name)[1].lower()
            if (
                not name.startswith(".")
                and suffix not in SUFFIXES | _BESIDE
                and (suffix or not name.isupper())
            ):
                kinds[suffix] += 1


def _of_other_kinds(folder: Path) -> str:
    kinds: Counter[str] = Counter()
    _count(folder, kinds, [])
    return (
        f" ({sum(kinds.values())} files of kinds that are not read: {_kinds(kinds)})"
        if kinds
        else ""
    )


def _kinds(kinds: Counter[str]) -> str:
    return ", ".join(
        f"{count} {shown(suffix) or 'without a suffix'}" for suffix, count in kinds.most_common(8)
    )


def _paths(paths: tuple[Path, ...] | list[Path]) -> str:
    return _listed([shown(path.name) for path in paths])


def _listed(names: list[str], most: int = _NAMED) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _failures(errors: list[OSError]) -> str:
    return _listed([f"{shown(str(error.filename))} ({error.strerror})" for error in errors])
