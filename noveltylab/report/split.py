"""Reads a run's split.npz: which images trained and tested."""

import hashlib
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from noveltylab.errors import UserError
from noveltylab.results.files import open_regular

#: Bytes that the arrays of a split's file may have.
MAX_BYTES = 2 * 2**30
PARTS = ("part", "id", "label", "is_outlier")


def read_split(folder: Path) -> dict[str, NDArray[Any]]:
    """The arrays of a run's split.npz by name. UserError where it cannot be read or lacks one."""
    try:
        with open_regular(folder / "split.npz", within=folder) as file:
            with zipfile.ZipFile(file) as archive:
                if sum(member.file_size for member in archive.infolist()) > MAX_BYTES:
                    raise UserError("split.npz: unpacks to more than a split may have")
            file.seek(0)
            with np.load(file, allow_pickle=False) as arrays:
                return {name: arrays[name] for name in PARTS}
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"split.npz: cannot be read ({error})") from None


def split_hash(split: dict[str, NDArray[Any]]) -> str:
    """The hash of a split as result.json has it.

    Of part, id, label and is_outlier of each image in order.
    """
    rows = zip(*(split[name].tolist() for name in PARTS), strict=True)
    lines = "".join(f"{part},{name},{label},{int(flag)}\n" for part, name, label, flag in rows)
    return hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()
