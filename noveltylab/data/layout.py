"""How a folder of somebody's own images is laid out, from names alone: neither torch nor an image is loaded.

    <root>/train/<class>/*, <root>/test/<class>/*     as MVTec AD has them (train/good, test/<defect>), or any classes
    <root>/train/*, <root>/test/<class>/*             images right in train/ are the class "good"
    <root>/<class>/*                                  classes without an official test part
    <root>/*                                          one flat folder of good images

Images may lie deeper in a class's folder. Hidden files and other kinds of files are passed over.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from noveltylab.errors import UserError

#: names that count as images; the decoder goes by the content, whatever the name
SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm", ".pbm", ".pnm"}
GOOD = "good"


@dataclass(frozen=True)
class Layout:
    """Class name -> its folder, in the training part and in the test part (None without one); flat: of the top folder only."""

    root: Path
    train: dict[str, Path]
    test: dict[str, Path] | None
    flat: bool = False

    @property
    def classes(self) -> list[str]:
        """The class names by label: those of the training part first."""
        return list(dict.fromkeys([*self.train, *(self.test or {})]))

    def files(self) -> Iterator[tuple[Path, int, bool]]:
        """(path, label, of the test part) of every image, sorted within each class."""
        labels = {name: label for label, name in enumerate(self.classes)}
        for part, tested in ((self.train, False), (self.test or {}, True)):
            for name, folder in part.items():
                paths = sorted(_images_in(folder)) if self.flat else walk_images(folder)
                yield from ((path, labels[name], tested) for path in paths)


def find_layout(root: str | Path | None) -> Layout:
    """The layout of a folder. UserError where there is none: says what was found and what is expected."""
    if root is None:
        raise UserError("data=folder needs data.root, the folder of your images; e.g. data.root=~/parts")
    root = Path(root).expanduser()
    try:
        if not root.is_dir():
            found = "a file" if root.exists() else "no such folder"
            raise UserError(f"data.root={root}: {found}; name the folder of your images")
        return _find(root)
    except (OSError, ValueError) as error:
        raise UserError(f"data.root={root}: cannot be looked into ({error})") from None


def _find(root: Path) -> Layout:
    folders = _folders_in(root)
    if (train := root / "train").is_dir():
        classes = _folders_in(train) or ({GOOD: train} if has_images(train) else {})
        if not any(has_images(folder) for folder in classes.values()):
            raise UserError(f"{train}: holds no images; put good ones into {train / GOOD}")
        test = root / "test"
        kinds = _folders_in(test) if test.is_dir() else {}
        if not kinds and test.is_dir() and has_images(test):
            raise UserError(f"{test}: its images lie in no folder; put them into {test / GOOD} and {test / '<kind>'}")
        return Layout(root, classes, {name: folder for name, folder in kinds.items() if has_images(folder)} or None)
    if next(_images_in(root), None) is not None:
        return Layout(root, {GOOD: root}, None, flat=True)
    if inner := next((folder for folder in folders.values() if (folder / "train").is_dir()), None):
        raise UserError(f"data.root={root}: holds several sets, such as {inner.name}; choose one: data.root={inner}")
    if classes := {name: folder for name, folder in folders.items() if has_images(folder)}:
        return Layout(root, classes, None)
    names = sorted(os.listdir(root))
    found = f"found {len(names)} entries, such as {shown(names[0])}" if names else "it is empty"
    raise UserError(
        f"data.root={root}: no images ({', '.join(sorted(SUFFIXES))}); {found}. Expected train/good and test/<kind>, "
        "train/<class> and test/<class>, <class>, or images in the folder itself"
    )


def shown(name: str | Path) -> str:
    """A name as one line of printable text: what a terminal, a CSV file or an encoding would trip over is escaped."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)


def is_image_name(name: str) -> bool:
    """Whether a file of that name counts as an image."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES


def walk_images(folder: Path, named: frozenset[str] | set[str] = frozenset()) -> Iterator[Path]:
    """The images below a folder, one subfolder after the other, sorted; `named`: further suffixes that count.

    Links to folders are not followed, so that a loop of them has an end.
    """
    for path, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if is_image_name(name) or (not name.startswith(".") and os.path.splitext(name)[1].lower() in named):
                yield Path(path, name)


def has_images(folder: Path) -> bool:
    return next(walk_images(folder), None) is not None


def _images_in(folder: Path) -> Iterator[Path]:
    with os.scandir(folder) as entries:
        for entry in entries:
            # entry.is_dir() would raise for a loop of links, which is a file that cannot be read
            if is_image_name(entry.name) and not os.path.isdir(entry.path):
                yield Path(entry.path)


def _folders_in(folder: Path) -> dict[str, Path]:
    """Name as shown -> path, sorted, without hidden ones."""
    found = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    return {shown(path.name).replace("/", "_"): path for path in found}
