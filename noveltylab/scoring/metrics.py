"""Metrics of one whole run, from raw scores at any scale.

Larger scores are more novel and outliers are the positives.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from noveltylab.errors import UserError
from noveltylab.results.record import inverted
from noveltylab.scoring.auroc import interval, place

Array = NDArray[np.float64]
Integers = NDArray[np.int64]
Flags = NDArray[np.bool_]


def evaluate(scores: ArrayLike, is_outlier: ArrayLike) -> dict[str, Any]:
    """Every metric of one score over the test split.

    Args:
        scores: (N,), finite, any scale, larger is more novel.
        is_outlier: (N,), bool or 0/1, with both present.

    Returns:
        ``auroc`` in [0, 1]; ``auroc_ci`` [lo, hi], its 95 percent interval over the test samples
        (not over training seeds) by ``auroc.METHOD``; ``average_precision``; ``eer``, where the
        linearly interpolated ROC has FPR = 1 - TPR; ``fpr95``, the FPR at the strictest threshold
        that finds 95 percent of the outliers. All plain floats.

    Raises:
        UserError: Empty input, NaN or infinite scores, lengths that differ, or only inliers or only
        outliers.
    """
    from torchmetrics.functional.classification import binary_auroc, binary_average_precision

    values, outlier = _checked(scores, is_outlier)
    place_of, count = _places(values)
    fpr, tpr = _roc(place_of, outlier)
    # raw scores outside [0, 1] would be taken for logits: ranks are not, and carry all that these
    # metrics read; equal scores share the mean of their ranks
    mean_ranks = np.cumsum(count) - (count - 1) / 2
    shares = mean_ranks / len(values)
    with _float64_torch() as torch:
        ranks = torch.from_numpy(shares[place_of])
        target = torch.from_numpy(outlier.astype(np.int64))
        auroc = float(binary_auroc(ranks, target))
        average_precision = float(binary_average_precision(ranks, target))
    bounds = interval(auroc, place(values, outlier))
    return {
        "auroc": auroc,
        "auroc_ci": list(bounds),
        "average_precision": average_precision,
        "eer": _eer(fpr, tpr),
        "fpr95": float(fpr[np.argmax(tpr >= 0.95)]),
    }


def evaluate_kinds(
    scores: ArrayLike, is_outlier: ArrayLike, classes: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """The metrics of each kind of outlier by itself, against all inliers.

    Args:
        scores, is_outlier: As ``evaluate``.
        classes: N names; those of the outliers are the kinds.

    Returns:
        Kind, in alphabetical order -> ``outliers`` (how many) and what ``evaluate`` returns.
    """
    values, outlier = _checked(scores, is_outlier)
    names = np.asarray(classes)
    kinds = {}
    for kind in sorted(set(names[outlier].tolist())):
        of_kind = outlier & (names == kind)
        rows = ~outlier | of_kind
        metrics = evaluate(values[rows], outlier[rows])
        kinds[kind] = {"outliers": int(of_kind.sum()), **metrics}
    return kinds


def roc(scores: ArrayLike, is_outlier: ArrayLike) -> tuple[Array, Array]:
    """The ROC curve with one point for each distinct score, without torch.

    Args:
        scores: (N,), finite, larger is more novel.
        is_outlier: (N,), bool or 0/1, with both present.

    Returns:
        ``fpr`` and ``tpr``, float64 (K + 1,) for K distinct scores, rising from (0, 0) to (1, 1).

    Raises:
        UserError: As ``evaluate``.
    """
    values, outlier = _checked(scores, is_outlier)
    place_of, _ = _places(values)
    return _roc(place_of, outlier)


def half_total_error_rate(
    test_scores: ArrayLike, test_is_outlier: ArrayLike, threshold: float
) -> float:
    """(FAR + FRR) / 2 in [0, 1] at a threshold fixed beforehand.

    As in Bengio and Mariéthoz (2004), and in NDA's table 6.

    A sample is rejected if its score is above the threshold: FAR is the share of outliers (attacks)
    that are not, FRR the share of inliers (live faces) that are.

    Args:
        test_scores: (N,), finite, larger is more novel; of videos, not of their frames.
        test_is_outlier: (N,), bool or 0/1, with both present.
        threshold: Not chosen on these samples: `equal_error_threshold` of a source set.

    Raises:
        UserError: As ``evaluate``, or a threshold that is NaN.
    """
    return error_rates(test_scores, test_is_outlier, threshold)["hter"]


def error_rates(
    test_scores: ArrayLike, test_is_outlier: ArrayLike, threshold: float
) -> dict[str, float]:
    """``far``, ``frr`` and their mean ``hter``; arguments and errors as ``half_total_error_rate``."""
    values, outlier = _checked(test_scores, test_is_outlier)
    if np.isnan(threshold):
        raise UserError(
            "the threshold is NaN; take equal_error_threshold of a source set's scores."
        )
    rejected = values > threshold
    far = float(np.mean(~rejected[outlier]))
    frr = float(np.mean(rejected[~outlier]))
    return {"far": far, "frr": frr, "hter": (far + frr) / 2}


def equal_error_threshold(source_scores: ArrayLike, source_is_outlier: ArrayLike) -> float:
    """The score of a source set at which FAR and FRR are closest.

    Of several, one with the smallest sum of both.

    The convention of Idiap's databases for ``half_total_error_rate``: scores above it are rejected.

    Args:
        source_scores: (N,), finite, larger is more novel.
        source_is_outlier: (N,), bool or 0/1, with both present.

    Raises:
        UserError: As ``evaluate``.
    """
    values, outlier = _checked(source_scores, source_is_outlier)
    place_of, _ = _places(values)
    frr, tpr = _roc(place_of, outlier)
    # point i rejects the i highest distinct scores: the threshold is the next one
    frr = frr[:-1]
    far = 1 - tpr[:-1]
    gap = np.round(np.abs(frr - far), 12)  # equal gaps may differ in their last bit
    best = np.lexsort((frr + far, gap))[0]
    falling = np.unique(values)[::-1]
    return float(falling[best])


def source_threshold(
    source_scores: ArrayLike, source_is_outlier: ArrayLike, rule: str | float
) -> float:
    """The threshold that a source set places.

    Args:
        source_scores, source_is_outlier: As ``equal_error_threshold``.
        rule: "equal_error", or the share of the source's inliers that is rejected at most; no
            outlier counts then.
    """
    if isinstance(rule, str):
        return equal_error_threshold(source_scores, source_is_outlier)
    outlier = np.asarray(source_is_outlier, np.bool_)
    inliers = np.asarray(source_scores, np.float64)[~outlier]
    return float(np.quantile(inliers, 1 - rule, method="higher"))


def collapse_warnings(name: str, scores: ArrayLike, metrics: Mapping[str, Any] | None) -> list[str]:
    """One sentence for each sign that a method collapsed or points the wrong way.

    Args:
        name: Of the score, said in the sentence.
        scores: (N,), finite, N at least 1.
        metrics: Of these scores, as ``evaluate`` gives them; None where there are no labelled
            outliers.
    """
    values = np.asarray(scores, np.float64)
    distinct = len(np.unique(values))
    unit = np.abs(values).max() or 1.0  # keeps the variance of huge or tiny scores within range
    mean = (values / unit).mean()
    std = (values / unit).std()
    warnings = []
    few = max(10.0, 0.05 * len(values))
    if distinct < min(few, len(values)):
        warnings.append(
            f"{name}: only {distinct} distinct scores among {len(values)} samples, a sign of collapse."
        )
    if std <= 1e-6 * abs(mean):
        warnings.append(
            f"{name}: the scores hardly vary (standard deviation {std * unit:.3g} around {mean * unit:.3g})."
        )
    if metrics is not None:
        warning = inverted(name, metrics["auroc"], metrics["auroc_ci"])
        if warning:
            warnings.append(warning)
    return warnings


def _checked(scores: ArrayLike, is_outlier: ArrayLike) -> tuple[Array, Flags]:
    values = np.asarray(scores, np.float64)
    flags = np.asarray(is_outlier)
    if values.ndim != 1 or values.shape != flags.shape:
        raise UserError(
            f"each sample needs one score and one is_outlier, but got {values.shape} and {flags.shape}."
        )
    if values.size == 0:
        raise UserError(
            "metrics need test samples, but there are none: check the protocol and the data folder."
        )
    bad = int(np.sum(~np.isfinite(values)))
    if bad:
        raise UserError(
            f"{bad} of {len(values)} scores are NaN or infinite: training diverged or the score overflowed. "
            "Try a smaller learning rate or full precision."
        )
    strange = np.setdiff1d(flags, (0, 1))
    if len(strange):
        raise UserError(f"is_outlier must be 0 or 1, but holds {strange[0]}.")
    outlier = flags.astype(np.bool_)
    if outlier.all() or not outlier.any():
        kind = "outliers" if outlier.all() else "inliers"
        raise UserError(
            f"all {len(values)} test samples are {kind}, but metrics need both kinds: check the protocol."
        )
    return values, outlier


def _places(values: Array) -> tuple[Integers, Integers]:
    """Where each score stands among the K distinct ones.

    Returns:
        Its place (N,) in rising order, and how often each of the distinct scores occurs (K,).
    """
    _, place_of, count = np.unique(values, return_inverse=True, return_counts=True)
    return place_of, count


def _roc(place_of: Integers, outlier: Flags) -> tuple[Array, Array]:
    size = int(place_of.max()) + 1
    fpr = _shares_above(place_of[~outlier], size)
    tpr = _shares_above(place_of[outlier], size)
    return fpr, tpr


def _shares_above(places: Integers, size: int) -> Array:
    """The share of scores that stand at the k highest of `size` places, k = 0 .. size."""
    falling = np.bincount(places, minlength=size)[::-1]
    hits = np.cumsum(falling)
    return np.concatenate([[0.0], hits / hits[-1]])


def _eer(fpr: Array, tpr: Array) -> float:
    # torchmetrics averages FPR and 1 - TPR at the nearest corner instead: 1/4 and not 1/3 for ROC
    # (0,0) (0,1/2) (1,1)
    gap = fpr - (1 - tpr)  # rises from -1 to 1
    after = int(np.searchsorted(gap, 0.0))
    before = after - 1
    part = -gap[before] / (gap[after] - gap[before])
    step = fpr[after] - fpr[before]
    return float(fpr[before] + part * step)


@contextmanager
def _float64_torch() -> Iterator[Any]:
    """torch with float64 as default: torchmetrics divides integer counts, which would give float32."""
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield torch
    finally:
        torch.set_default_dtype(before)
