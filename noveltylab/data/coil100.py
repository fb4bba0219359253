"""COIL-100 and COIL-20: objects on a turntable, 72 views of each, 128 x 128 pixels.

Described by Nene, Nayar and Murase (1996). COIL-100 has 100 objects in colour: one file per view,
``obj<k>__<angle>.png``, in ``<root>/coil-100``, or in the archive ``<root>/coil-100.zip``, which is
read in place. COIL-20 has 20 in grey and lies in ``<root>/coil-20-proc``; its files count the
views, 5 degrees apart, from 0 to 71. Copies in any square size, grey or colour, will do; the result
says so.
"""

import io
import re
import warnings
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL.PngImagePlugin import PngImageFile

from noveltylab.data.cache import Arrays, cached, code_key, fingerprint
from noveltylab.data.samples import Samples, unchecked
from noveltylab.data.stored import (
    Stored,
    check_archive,
    find_archive,
    missing,
    names_in,
    resolve_root,
    zip_members,
)
from noveltylab.errors import UserError

VIEWS = 72
DEGREES = 5

#: side in pixels and size in bytes up to which a picture is read: the whole set has to fit into
#: memory
MAX_SIDE = 512
MAX_BYTES = 4 << 20
#: Pillow's name of a picture's pixels -> ours
MODES = {"L": "grey", "RGB": "colour"}

_NAME = re.compile(r"obj([1-9][0-9]{0,2})__(0|[1-9][0-9]{0,2})\.png")


@dataclass(frozen=True)
class Coil:
    """One of the two sets and how it is stored: files obj<k>__<n>.png.

    k is 1..objects, n is 0, step, ..., 71 * step.
    """

    title: str
    option: str
    objects: int
    step: int
    pixels: str
    archive: str
    folders: tuple[str, ...]
    #: bytes and SHA-256 of the archive as TensorFlow Datasets has them; of single files none were
    #: published
    size: int | None = None
    sha256: str | None = None

    @property
    def total(self) -> int:
        """How many views the whole set has."""
        return self.objects * VIEWS

    def parse(self, name: str) -> tuple[int, int] | None:
        """(k, n) of a file name; None for any other name."""
        match = _NAME.fullmatch(name)
        if not match:
            return None
        k, n = int(match[1]), int(match[2])
        if k > self.objects or n >= VIEWS * self.step or n % self.step:
            return None
        return k, n


COIL100 = Coil(
    title="COIL-100",
    option="data=coil100",
    objects=100,
    step=DEGREES,  # n is the angle
    pixels="128 x 128 colour",
    archive="coil-100.zip",
    folders=("coil-100", "coil-100/coil-100", "COIL-100", "COIL-100/coil-100"),
    size=130_688_843,
    sha256="fcb4b8b01c0778f416d8d7a09f45082c4f7075cc74743dcddd5c44307bd4afe7",
)
COIL20 = Coil(
    title="COIL-20",
    option="data=coil20",
    objects=20,
    step=1,  # n counts the views
    pixels="128 x 128 grey",
    archive="coil-20-proc.zip",
    folders=tuple(
        f"{above}coil-20-{kind}"
        for kind in ("proc", "32x32")
        for above in ("", "coil-20/", "COIL-20/")
    ),
)


#: the modules that decide what a cached entry holds
_CODE = ("data.coil100",)


def read(
    root: Path | None, *, verify: bool, download: bool, cache: bool, name: str = "coil100"
) -> Samples:
    """Samples with images (7200 or 1440, C, H, H), sorted by object and view.

    Of several folders the fullest is taken; ids are `obj<k>/<n>`. facts: "view", the angle in
    degrees.

    Args:
        root: The data folder.
        verify: All views must be there, and an archive must be the official one, which makes the
            result verified (of the unpacked files no checksums were published). Without it any part
            of the views will do.
        download: Has no effect but on the error where the files are absent.
        cache: Keep the decoded images, and read kept ones.
        name: "coil100" or "coil20".

    Raises:
        UserError: files are missing or cannot be used.
    """
    coil = COIL20 if name == "coil20" else COIL100
    root = resolve_root(root)
    place, views = _find(coil, root, download, verify)
    if verify and len(views) < coil.total:
        raise _incomplete(coil, place.path, views)
    checked = bool(place.member and coil.sha256 and verify)
    verified = checked or unchecked(verify)
    files: list[Stored] = []
    ids: list[str] = []
    for k, n in views:
        files.append(_beside(place, _file(k, n)))
        ids.append(f"obj{k}/{n:03d}")
    import torch  # takes seconds: only once the files are there

    arrays = _kept_images(name, files) if cache else {"images": _read_images(files)}
    images = torch.from_numpy(arrays["images"])
    table = np.array(views, dtype=np.int64)
    notes: tuple[str, ...] = (_note(coil, place, arrays["images"]),)
    if checked and images.shape[2] == 128:
        notes = ()
    return Samples(
        images=images,
        labels=table[:, 0] - 1,
        official_test=None,
        ids=np.array(ids),
        verified=verified,
        facts={"view": table[:, 1] // coil.step * DEGREES},
        notes=notes,
        missing=coil.total - len(views),
    )


def _kept_images(name: str, files: list[Stored]) -> Arrays:
    """`images` of the files, from the cache if they are there."""
    paths = list(dict.fromkeys(file.path for file in files))

    def make() -> Arrays:
        return {"images": _read_images(files)}

    try:
        files_now = fingerprint(paths, paths[0].parent)
    except OSError:
        return make()  # which names the file that is not there
    key = {
        "folder": str(paths[0].parent),
        "files": files_now,
        "views": [file.name for file in files],
        "code": code_key(_CODE, ("numpy", "pillow")),
    }
    return cached(name, key, make)


def check_files(root: Path | None, *, name: str) -> None:
    """UserError where the files are absent, or are no views; imports no torch."""
    _find(COIL20 if name == "coil20" else COIL100, resolve_root(root), False, verify=False)


def _file(k: int, n: int) -> str:
    return f"obj{k}__{n}.png"


def _beside(place: Stored, name: str) -> Stored:
    if not place.member:
        return Stored(place.path / name)
    return Stored(place.path, str(PurePosixPath(place.member).with_name(name)))


def _find(
    coil: Coil, root: Path, download: bool, verify: bool
) -> tuple[Stored, list[tuple[int, int]]]:
    """Where the most views of the set lie, and these (k, n), sorted.

    A folder as Stored(folder), in an archive any file of it.

    Raises:
        UserError: there are none, or a picture beside them is no view.
    """
    pictures = _places(coil, root, verify)
    twin = COIL20 if coil.option == COIL100.option else COIL100
    if not pictures:
        raise _absent(coil, twin, root, download)
    views = {}
    for place, names in pictures.items():
        views[place] = list(filter(None, map(coil.parse, names)))
    fullest = max(views, key=lambda place: len(views[place]))
    if len(views[fullest]) < len(pictures[fullest]):
        raise _strange(coil, twin, fullest, pictures[fullest])
    return fullest, sorted(views[fullest])


def _places(coil: Coil, root: Path, verify: bool) -> dict[Stored, list[str]]:
    """Where views may lie, and the names of the pictures there: folders, else an archive."""
    pictures = {}
    for part in coil.folders:
        names = _pictures(root / part)
        if names:
            pictures[Stored(root / part)] = names
    if pictures:
        return pictures
    names = _pictures(root)
    if any(map(coil.parse, names)):  # data.root is the folder itself
        return {Stored(root): names}
    archive = find_archive(root, coil.archive)
    if archive is None:
        return {}
    if verify and coil.sha256:
        check_archive(archive, "sha256", coil.sha256, coil.size)
    return _in_archive(archive)


def _strange(coil: Coil, twin: Coil, place: Stored, names: list[str]) -> UserError:
    """The error for pictures of which at least one is no view of the set."""
    strange = next(name for name in names if coil.parse(name) is None)
    if all(map(twin.parse, names)):
        return UserError(
            f"{place} holds views of {twin.title}, such as {strange}, not of {coil.title}: "
            f"use {twin.option}."
        )
    return UserError(
        f"{_beside(place, strange)} is no view of {coil.title}: expected names obj<k>__<n>.png "
        f"with k from 1 to {coil.objects} and n = 0, {coil.step}, ..., "
        f"{(VIEWS - 1) * coil.step}. Rename it or move it away."
    )


def _in_archive(path: Path) -> dict[Stored, list[str]]:
    """For each folder of an archive one of its files, and the names of its pictures."""
    folders: dict[PurePosixPath, list[str]] = {}
    for member in sorted(zip_members(path)):
        if member.lower().endswith(".png"):
            folders.setdefault(PurePosixPath(member).parent, []).append(PurePosixPath(member).name)
    return {Stored(path, str(folder / names[0])): names for folder, names in folders.items()}


def _pictures(folder: Path) -> list[str]:
    """Sorted names of the pictures in a folder, without hidden files; none without the folder."""
    names = names_in(folder)
    return [name for name in names if name.lower().endswith(".png") and name[0] != "."]


def _absent(coil: Coil, twin: Coil, root: Path, download: bool) -> UserError:
    folders = [root / part for part in coil.folders]
    first = next((folder for folder in folders if folder.is_dir()), root)
    not_fetched = ""
    if download:
        not_fetched = "; data.download=true cannot fetch it"
    remedy = (
        f"Get {coil.archive} from the page of COIL (Columbia Object Image Library) of the CAVE "
        f"laboratory at Columbia University and put it into {root}, or unpack it there, so that "
        f"{folders[0] / _file(1, 0)} is there{not_fetched}."
    )
    for part in twin.folders:
        if _pictures(root / part):
            hint = f"{root / part} looks like {twin.title}: for it use {twin.option}."
            remedy = f"{hint} {remedy}"
            break
    title = f"{coil.title} (files obj<k>__<n>.png in a folder {coil.folders[0]})"
    return missing(title, first, remedy)


def _incomplete(coil: Coil, folder: Path, views: list[tuple[int, int]]) -> UserError:
    present = set(views)
    absent: list[str] = []
    for k in range(1, coil.objects + 1):
        for n in range(0, VIEWS * coil.step, coil.step):
            view = (k, n)
            if view not in present:
                absent.append(_file(k, n))
    names = ", ".join(absent[:3])
    if len(absent) > 3:
        names += f" and {len(absent) - 3} more"
    return UserError(
        f"{folder} is incomplete: expected {coil.total} views of {coil.title} "
        f"({coil.objects} objects, {VIEWS} each), found {len(views)}; missing: {names}. "
        "Add them, or accept what is there with data.verify=false."
    )


def _note(coil: Coil, place: Stored, images: NDArray[np.uint8]) -> str:
    """What is known of the files instead of their checksums."""
    count, channels, side, _ = images.shape
    pixels = f"{side} x {side} {'grey' if channels == 1 else 'colour'}"
    checksums = "no published checksums"
    if coil.sha256:
        checksums += f" but that of {coil.archive}"
    contents = f"all {count} views counted"
    if count < coil.total:
        contents = f"only {count} of {coil.total} views there"
    if pixels != coil.pixels:
        contents += f", {pixels} pixels in place of the original {coil.pixels}"
    return f"{coil.title} has {checksums}; in {place.path.absolute().name}: {contents}"


def _read_images(files: list[Stored]) -> NDArray[np.uint8]:
    """uint8 (N, C, H, H), by threads; UserError names the first file that is unreadable or differs."""
    from noveltylab.data.decode import in_order  # imports torch

    # once for all threads, which share the filters of warnings
    with warnings.catch_warnings(action="error", category=UserWarning):
        first = read_png(files[0])
        images = np.empty((len(files), *first.shape), np.uint8)
        for i, (file, pixels) in enumerate(zip(files, in_order(read_png, files), strict=True)):
            _check_shape(file, pixels, files[0], first)
            images[i] = pixels
    return images


def _check_shape(
    file: Stored, pixels: NDArray[np.uint8], first_file: Stored, first: NDArray[np.uint8]
) -> None:
    """UserError where a view has another size than the first one."""
    if pixels.shape != first.shape:
        raise UserError(
            f"{file} differs from the others: it has {pixels.shape[-1]} x {pixels.shape[-2]} "
            f"pixels in {len(pixels)} channels, {first_file.name} has {first.shape[-1]} x "
            f"{first.shape[-2]} in {len(first)}."
        )


def read_png(file: Stored) -> NDArray[np.uint8]:
    """uint8 (C, H, H) of a square grey (C = 1) or colour (C = 3) PNG file, its checksums compared.

    UserError naming the file if it is damaged, of another kind, or larger than MAX_SIDE; nothing
    that large is decoded. A warning of the decoder is damage where the caller makes it an error.
    """
    content = file.read(MAX_BYTES)
    try:
        return _decode(content, file)
    except UserError:
        raise
    except Exception as error:  # what a damaged file makes the decoder raise is not documented
        raise UserError(
            f"{file} is truncated or corrupt: {len(content)} bytes do not make a PNG image "
            f"({error}). Replace it."
        ) from error


def _decode(content: bytes, file: Stored) -> NDArray[np.uint8]:
    image = PngImageFile(io.BytesIO(content))  # reads the header only
    (width, height), mode = image.size, image.mode
    if width != height or width > MAX_SIDE or mode not in MODES:
        raise UserError(
            f"{file}: expected a square picture of at most {MAX_SIDE} pixels a side, 8-bit grey or "
            f"colour, found {width} x {height} in Pillow's mode {mode}."
        )
    image.verify()  # the checksum of each chunk; the image cannot be used afterwards
    pixels = np.asarray(PngImageFile(io.BytesIO(content)))
    return pixels.reshape(height, width, -1).transpose(2, 0, 1)
