"""COIL-20: 20 objects on a turntable, 72 views of each, 128 x 128 grey pixels.

Lies in ``<root>/coil-20-proc``, named as COIL-100 is (coil100.py), but ``obj<k>__<view>.png``
counts the views, 5 degrees apart, from 0 to 71.
"""

from pathlib import Path

from noveltylab.data.coil100 import COIL20, read_layout
from noveltylab.data.samples import Samples


def read(root: Path | None, *, verify: bool, download: bool) -> Samples:
    """Samples with images (1440, C, H, H), sorted by object and view; otherwise as COIL-100's."""
    return read_layout(COIL20, root, verify=verify, download=download)
