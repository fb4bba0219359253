"""A run's samples and their split, from its options: read, checked, cut."""

from typing import Any

from noveltylab.data.load import load
from noveltylab.data.protocols import PROTOCOLS, VAL_LABELLED, draw_val_outliers, split
from noveltylab.data.samples import Samples
from noveltylab.data.split import Split
from noveltylab.errors import UserError, nearest
from noveltylab.options import Options, check_arguments


def read_and_split(options: Options) -> tuple[Samples, Split]:
    """The samples and their split; all options of both are checked."""
    protocol = dict(options.protocol)
    name = protocol.pop("name")
    if name not in PROTOCOLS:
        raise UserError(f"protocol.name={name}: no such protocol; {nearest(name, PROTOCOLS)}")
    arguments = check_arguments(PROTOCOLS[name], {**protocol, "seed": options.seed}, "protocol")
    settings = options.data
    extra: dict[str, Any] = {
        "features": settings.features,
        "cache": settings.cache,
        "inlier": options.inlier_index,
    }
    extra |= {"size": settings.size, "on_error": settings.on_error, "bits": settings.bits}
    extra |= {"source": settings.source, "target": settings.target}
    samples = load(settings.name, settings.root, settings.verify, settings.download, **extra)
    parts = split(
        name,
        samples.labels,
        samples.official_test,
        options.inlier_index,
        facts=samples.facts,
        **arguments,
    )
    parts = parts.limit(settings.limit_train)
    if options.labelled_rule and not parts.is_outlier.any():
        raise UserError(
            f"select={options.select} needs labelled outliers and the test part has none; use select=val_loss"
        )
    if options.select == "outlier_val":
        flags = samples.official_test
        parts = draw_val_outliers(
            parts, samples.labels, flags, options.inlier_index, VAL_LABELLED, options.seed
        )
    return samples, parts
