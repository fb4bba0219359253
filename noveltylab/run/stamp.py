"""Whether files of somebody's own images changed, from their names, sizes and times: neither torch
nor an image is loaded.
"""

from typing import Any

from noveltylab.data.cache import fingerprint
from noveltylab.data.layout import find_layout
from noveltylab.options import Options


def files_stamp(options: Options) -> str | None:
    """Changes with the name, size or time of any file of somebody's own images; None for published
    data.
    """
    if options.data.classes != "folders":
        return None
    layout = find_layout(options.data.root)
    return fingerprint([path for path, *_ in layout.files()], layout.root)


def files_changed(result: dict[str, Any], options: Options) -> bool:
    """Whether any file is another than when the complete run began; False for a run that did not
    record them.
    """
    recorded = result.get("data_files")
    return recorded is not None and recorded != files_stamp(options)
