"""How a folder of somebody's own images is laid out, from names alone.

Neither torch nor an image is loaded.

    <root>/train/<class>/*, <root>/test/<class>/*     as MVTec AD has them (train/good,
                                                      test/<defect>), or any classes
    <root>/train/*, <root>/test/<class>/*             images right in train/ are the class "good"
    <root>/<class>/*                                  classes without an official test part
    <root>/*                                          one flat folder of good images

`train` and `test` may be written in capitals. Images may lie deeper in a class's folder. Class
folders with images win over pictures beside them. Hidden files are passed over; what else is left
out can be asked for (`Layout.left_out`).
"""

import os
from collections import Counter
from collections.abc import Iterator, Set
from dataclasses import dataclass
from pathlib import Path

from noveltylab.errors import UserError

#: names that count as images; the decoder goes by the content, whatever the name
SUFFIXES = {
    ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jif", ".jfif", ".jfi", ".bmp", ".dib",
    ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm", ".pbm", ".pnm",
}  # fmt: skip
#: files that lie beside images and are none
_BESIDE = {
    ".txt", ".md", ".rst", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".yaml", ".yml",
    ".html", ".htm", ".log", ".ini", ".cfg", ".toml", ".db", ".py", ".sh", ".bat",
    ".ipynb", ".lnk", ".url", ".sha256", ".md5",
}  # fmt: skip
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

    flat: only images right in the folder belong to its class; stray: images beside the class
    folders; parts: all folders that belong to the layout; unused: folders with images that do not.
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
        """The class that trains if none is named; UserError if that is not clear."""
        good = [name for name in self.classes if name.casefold() in GOOD_NAMES]
        if len(good) == 1 and good[0] in self.train:
            name = good[0]
        elif len(self.train) == 1 and len(good) < 2:
            (name,) = self.train
        else:
            reason = "none is called good, normal or ok"
            if len(good) > 1:
                reason = f"{_listing(good)} are all called good"
            raise UserError(
                f"data.root={self.root}: it has the classes {_listing(self.classes, 20)}, "
                f"and {reason}; say which one trains, e.g. inlier=<name>"
            )
        if len(self.stray) > len(list(walk_images(self.train[name]))):
            raise UserError(
                f"data.root={self.root}: {len(self.stray)} images lie beside its folders "
                f"({_paths(self.stray)}), more than in {name}/; move either away, "
                f"or say inlier={name}"
            )
        return name

    def files(self) -> Iterator[tuple[Path, int, bool]]:
        """(path, label, whether in the test part) of every image, sorted within each class.

        Raises:
            UserError: after the last one, if a folder cannot be looked into.
        """
        classes = self.classes
        unreadable: list[OSError] = []
        for part, is_test in ((self.train, False), (self.test or {}, True)):
            for name, folder in part.items():
                for path in self._images_of(folder, unreadable):
                    yield path, classes.index(name), is_test
        if unreadable:
            raise UserError(
                f"{len(unreadable)} folders cannot be looked into: {_failures(unreadable)}; "
                "make them readable, or move them away"
            )

    def _images_of(self, folder: Path, unreadable: list[OSError]) -> Iterator[Path]:
        if self.flat:
            return iter(sorted(_images_in(folder)))
        return walk_images(folder, unreadable=unreadable)

    def left_out(self) -> list[str]:
        """Sentences on what lies in the folder and is not read."""
        kinds: Counter[str] = Counter()
        links: list[Path] = []
        for part in self.parts:
            _count(part, kinds, links)
        notes = []
        if kinds:
            notes.append(
                f"left out: {kinds.total()} files of kinds that are not read ({_kinds(kinds)}); "
                "convert them to PNG"
            )
        if links:
            notes.append(f"left out: {len(links)} links to folders ({_paths(links)})")
        if self.stray:
            count, paths = len(self.stray), _paths(self.stray)
            notes.append(f"left out: {count} images beside the class folders ({paths})")
        if self.unused:
            notes.append(
                f"left out: folders that are neither train nor test ({_paths(self.unused)})"
            )
        return notes


def find_layout(root: str | Path | None) -> Layout:
    """The layout of a folder; UserError says what it holds if there is none."""
    if root is None:
        raise UserError(
            "data=images needs data.root, the folder of your images; e.g. data.root=~/parts"
        )
    try:
        root = Path(root).expanduser()
        if not root.is_dir():
            reason = "a file" if root.exists() else "no such folder"
            raise UserError(f"data.root={root}: {reason}; name the folder of your images")
        return _find(root)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"data.root={root}: cannot be looked into ({error})") from None


def _find(root: Path) -> Layout:
    folders = _folders_in(root)
    train = _part(root, folders, "train")
    test = _part(root, folders, "test")
    if train is not None:
        return _find_parts(root, folders, train, test)
    if test is not None:
        raise UserError(
            f"data.root={root}: has {test.name}/ but no train/; "
            f"put good images into {root / 'train' / GOOD}"
        )
    for folder in folders.values():
        if _part(folder, _folders_in(folder, unreadable=True), "train"):
            raise UserError(
                f"data.root={root}: holds several sets, such as {folder.name}; "
                f"choose one: data.root={folder}"
            )
    loose_images = tuple(sorted(_images_in(root)))
    classes = _with_images(folders)
    if classes:
        return Layout(root, classes, None, (root,), stray=loose_images)
    if loose_images:
        return Layout(root, {GOOD: root}, None, (root,), flat=True)
    names = sorted(os.listdir(root))
    contents = "it is empty"
    if names:
        contents = f"found {len(names)} entries, such as {shown(names[0])}"
    raise UserError(
        f"data.root={root}: no images ({', '.join(sorted(SUFFIXES))}); "
        f"{contents}{_of_other_kinds(root)}. Expected train/good and test/<kind>, train/<class> "
        "and test/<class>, <class>, or images in the folder itself"
    )


def _find_parts(root: Path, folders: dict[str, Path], train: Path, test: Path | None) -> Layout:
    """The layout of a folder with a training part and, perhaps, a test part."""
    # the training part: classes, or images of the class "good"
    classes = _with_images(_folders_in(train))
    loose_images = sorted(_images_in(train))
    if not classes and not loose_images:
        raise UserError(
            f"{train}: holds no images{_of_other_kinds(train)}; put good ones into {train / GOOD}"
        )
    if not classes:
        classes, loose_images = {GOOD: train}, []
    # the test part: kinds
    kinds: dict[str, Path] = {}
    parts = [train]
    if test is not None:
        kinds = _with_images(_folders_in(test))
        parts.append(test)
        loose_test_images = sorted(_images_in(test))
        if loose_test_images and not kinds:
            raise UserError(
                f"{test}: its images lie in no folder; put them into {test / GOOD} "
                f"and {test / '<kind>'}"
            )
        loose_images += loose_test_images
    # what lies beside the parts
    unused = []
    for name, folder in folders.items():
        if folder not in parts and name.casefold() != _MASKS and has_images(folder):
            unused.append(folder)
    stray = (*sorted(_images_in(root)), *loose_images)
    return Layout(root, classes, kinds or None, tuple(parts), stray=stray, unused=tuple(unused))


def _with_images(folders: dict[str, Path]) -> dict[str, Path]:
    return {name: folder for name, folder in folders.items() if has_images(folder)}


def _part(root: Path, folders: dict[str, Path], name: str) -> Path | None:
    """The folder called `name`, in any case; None without one; UserError if several are."""
    matches = [folder for key, folder in folders.items() if key.casefold() == name]
    if len(matches) > 1:
        names = _listing([folder.name for folder in matches])
        raise UserError(f"data.root={root}: holds {names}; leave one of them")
    return matches[0] if matches else None


def shown(name: str | Path) -> str:
    """A name as one line of printable text.

    What a terminal, a CSV file or an encoding would trip over is escaped.
    """
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return "".join(map(_printable, text))


def _printable(sign: str) -> str:
    return sign if sign.isprintable() else sign.encode("unicode_escape").decode()


def is_image_name(name: str) -> bool:
    """Whether a file of that name counts as an image."""
    return _has_suffix(name, SUFFIXES)


def _has_suffix(name: str, suffixes: Set[str]) -> bool:
    return not name.startswith(".") and _suffix(name) in suffixes


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def walk_images(
    folder: Path, further: Set[str] = frozenset(), unreadable: list[OSError] | None = None
) -> Iterator[Path]:
    """The images below a folder, one subfolder after the other, sorted.

    Links to folders are not followed, so that a loop of them has an end.

    Args:
        folder: Where to look.
        further: Suffixes that count besides SUFFIXES.
        unreadable: A folder that cannot be looked into is added to it; without this list it is an
            OSError.
    """
    suffixes = SUFFIXES | further
    on_error = _raise if unreadable is None else unreadable.append
    for path, folders, files in os.walk(folder, onerror=on_error):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if _has_suffix(name, suffixes):
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
    """Name as shown -> path, without hidden ones, numbers in their order.

    unreadable: a folder that cannot be looked into has none, which is no error.
    """
    try:
        names = os.listdir(folder)
    except OSError:
        if not unreadable:
            raise
        names = []
    names = [name for name in names if not name.startswith(".") and os.path.isdir(folder / name)]
    return {shown(name).replace("/", "_"): folder / name for name in sorted(names, key=_order)}


def _order(name: str) -> tuple[bool, int, str]:
    if name.isascii() and name.isdecimal():
        return False, int(name), name
    return True, 0, name


def _count(folder: Path, kinds: Counter[str], links: list[Path]) -> None:
    """Count the files below a folder that are not read, by suffix, and add the links to folders.

    The links are not followed. Folders that cannot be looked into are errors where the images are
    read.
    """
    for path, folders, files in os.walk(folder, onerror=lambda error: None):
        folders[:] = [name for name in folders if not name.startswith(".")]
        links += [Path(path, name) for name in folders if os.path.islink(os.path.join(path, name))]
        for name in files:
            suffix = _suffix(name)
            is_readme = not suffix and name.isupper()
            is_known = name.startswith(".") or suffix in SUFFIXES or suffix in _BESIDE
            if not is_known and not is_readme:
                kinds[suffix] += 1


def _of_other_kinds(folder: Path) -> str:
    kinds: Counter[str] = Counter()
    _count(folder, kinds, [])
    if not kinds:
        return ""
    return f" ({kinds.total()} files of kinds that are not read: {_kinds(kinds)})"


def _kinds(kinds: Counter[str]) -> str:
    listing = []
    for suffix, count in kinds.most_common(8):
        listing.append(f"{count} {shown(suffix) or 'without a suffix'}")
    return ", ".join(listing)


def _paths(paths: tuple[Path, ...] | list[Path]) -> str:
    return _listing([shown(path.name) for path in paths])


def _listing(names: list[str], limit: int = _NAMED) -> str:
    """The first names, and how many follow."""
    text = ", ".join(names[:limit])
    if len(names) > limit:
        text += f" and {len(names) - limit} more"
    return text


def _failures(errors: list[OSError]) -> str:
    return _listing([f"{shown(str(error.filename))} ({error.strerror})" for error in errors])
