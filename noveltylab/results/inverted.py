"""The warning that a score points the wrong way: where its AUROC's interval lies wholly below 0.5."""

from collections.abc import Sequence

#: What the warning begins with, behind the score's name; older results have it for any AUROC below
#: 0.5.
WORD = ": inverted, "


def inverted(name: str, auroc: float, interval: Sequence[float]) -> str:
    """The warning, "" where the interval reaches 0.5.

    Args:
        name: Of the score.
        auroc: Over the test images.
        interval: Of the AUROC, low and high.
    """
    if interval[1] >= 0.5:
        return ""
    return (
        f"{name}{WORD}an AUROC of {auroc:.3f} means that inliers get higher scores than outliers."
    )


def standing(warnings: Sequence[str], name: str, interval: Sequence[float]) -> list[str]:
    """The warnings of a result without that of an inverted score where its interval reaches 0.5.

    Args:
        warnings: As the result has them.
        name: Of its primary score.
        interval: Of that score's AUROC.
    """
    return [text for text in warnings if not text.startswith(f"{name}{WORD}") or interval[1] < 0.5]
