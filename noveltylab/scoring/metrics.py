"""Metrics of one whole run, from raw scores at any scale.

Larger scores are more novel and outliers are the positives.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from noveltylab.errors import UserError
from noveltylab.results.inverted import inverted
from noveltylab.scoring.auroc import interval, place


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
    level, count = _levels(values)
    fpr, tpr = _roc(level, outlier)
    with _float64_torch() as torch:
        # raw scores outside [0, 1] would be taken for logits: ranks are not, and carry all that
        # these metrics read
        ranks = torch.from_numpy(((np.cumsum(count) - (count - 1) / 2) / len(values))[level])
        target = torch.from_numpy(outlier.astype(np.int64))
        auroc = float(binary_auroc(ranks, target))
        average_precision = float(binary_average_precision(ranks, target))
    return {
        "auroc": auroc,
        "auroc_ci": list(interval(auroc, place(values, outlier))),
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
        kinds[kind] = {"outliers": int(of_kind.sum()), **evaluate(values[rows], outlier[rows])}
    return kinds


def roc(
    scores: ArrayLike, is_outlier: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
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
    return _roc(_levels(values)[0], outlier)


def half_total_error_rate(
    test_scores: ArrayLike, test_is_outlier: ArrayLike, threshold: float
) -> float:
    """(FAR + FRR) / 2 at a threshold fixed beforehand (Bengio and Mariéthoz, 2004; NDA's table 6),
    in [0, 1].

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
    far, frr = float(np.mean(~rejected[outlier])), float(np.mean(rejected[~outlier]))
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
    frr, tpr = _roc(_levels(values)[0], outlier)
    # point i rejects the i highest distinct scores: the threshold is the next one
    frr = frr[:-1]
    far = 1 - tpr[:-1]
    gap = np.round(np.abs(frr - far), 12)  # equal gaps may differ in their last bit
    return float(np.unique(values)[::-1][np.lexsort((frr + far, gap))[0]])


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
    inliers = np.asarray(source_scores, np.float64)[~np.asarray(source_is_outlier, np.bool_)]
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
    mean, std = (values / unit).mean(), (values / unit).std()
    warnings = []
    if distinct < min(max(10.0, 0.05 * len(values)), len(values)):
        warnings.append(
            f"{name}: only {distinct} distinct scores among {len(values)} samples, a sign of collapse."
        )
    if std <= 1e-6 * abs(mean):
        warnings.append(
            f"{name}: the scores hardly vary (standard deviation {std * unit:.3g} around {mean * unit:.3g})."
        )
    if metrics is not None and (warning := inverted(name, metrics["auroc"], metrics["auroc_ci"])):
        warnings.append(warning)
    return warnings


def _checked(
    scores: ArrayLike, is_outlier: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    values, flags = np.asarray(scores, np.float64), np.asarray(is_outlier)
    if values.ndim != 1 or values.shape != flags.shape:
        raise UserError(
            f"each sample needs one score and one is_outlier, but got {values.shape} and {flags.shape}."
        )
    if values.size == 0:
        raise UserError(
            "metrics need test samples, but there are none: check the protocol and the data folder."
        )
    if bad := int(np.sum(~np.isfinite(values))):
        raise UserError(
            f"{bad} of {len(values)} scores are NaN or infinite: training diverged or the score overflowed. "
            "Try a smaller learning rate or full precision."
        )
    if not np.isin(flags, (0, 1)).all():
        raise UserError(f"is_outlier must be 0 or 1, but holds {np.setdiff1d(flags, (0, 1))[0]}.")
    outlier = flags.astype(np.bool_)
    if outlier.all() or not outlier.any():
        kind = "outliers" if outlier.all() else "inliers"
        raise UserError(
            f"all {len(values)} test samples are {kind}, but metrics need both kinds: check the protocol."
        )
    return values, outlier


def _levels(values: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The index (N,) of each score among the K distinct ones in rising order, and how often each
    occurs (K,).
    """
    _, level, count = np.unique(values, return_inverse=True, return_counts=True)
    return level, count


def _roc(
    level: NDArray[np.int64], outlier: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    size = level.max() + 1
    counts = [
        np.cumsum(np.bincount(level[group], minlength=size)[::-1]) for group in (~outlier, outlier)
    ]
    fpr, tpr = (np.concatenate([[0.0], hits / hits[-1]]) for hits in counts)
    return fpr, tpr


def _eer(fpr: NDArray[np.float64], tpr: NDArray[np.float64]) -> float:
    # torchmetrics averages FPR and 1 - TPR at the nearest corner instead: 1/4 and not 1/3 for ROC
    # (0,0) (0,1/2) (1,1)
    gap = fpr - (1 - tpr)  # rises from -1 to 1
    after = int(np.searchsorted(gap, 0.0))
    before = after - 1
    part = -gap[before] / (gap[after] - gap[before])
    return float(fpr[before] + part * (fpr[after] - fpr[before]))


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
