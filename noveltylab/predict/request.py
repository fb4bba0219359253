"""What a prediction was asked for, and what it found."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Request:
    """A checked command line."""

    run: Path
    input: str
    output: Path
    fpr: float
    fdr: float | None
    accelerator: str
    html: bool

    @property
    def page(self) -> Path:
        return self.output.with_suffix(".html")

    @property
    def files(self) -> list[Path]:
        """What is written."""
        return [self.output, self.page] if self.html else [self.output]

    @property
    def rule(self) -> str:
        return f"p <= {self.fpr:g}" if self.fdr is None else f"Benjamini-Hochberg at {self.fdr:g}"


@dataclass
class Summary:
    """What a prediction found.

    Attributes:
        files: Scored (frames of a video count).
        novel: How many of them are called novel; None where the rule cannot decide.
        reason: Why it cannot.
        unreadable: (file, why), the first LISTED of `failed`.
        failed: How many files could not be read.
        seconds: That it took.
        top: The most novel ones, first the highest score.
        replaced: Files of an earlier prediction that this one took the place of.
    """

    files: int = 0
    novel: int | None = None
    reason: str = ""
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    failed: int = 0
    seconds: float = 0.0
    top: list["Case"] = field(default_factory=list)
    replaced: list[Path] = field(default_factory=list)


@dataclass(order=True)
class Case:
    """One scored file; `order` keeps equal scores in the order of the files, `images` is what the
    method saw.
    """

    score: float
    order: int
    name: str = field(compare=False)
    path: Path = field(compare=False)
    images: "Tensor" = field(compare=False)
