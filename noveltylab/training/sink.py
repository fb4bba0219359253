"""What every logger of a run is told, besides the losses that Lightning's Logger takes."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from pydantic import ValidationError

from noveltylab.command.logger_options import LoggerOptions
from noveltylab.errors import UserError
from noveltylab.options import Options
from noveltylab.results.files import read_text, write_atomic


@dataclass(frozen=True)
class Card:
    """A run as its loggers introduce it.

    Attributes:
        cell: Which run of a table it is (`Options.cell`).
        folder: The run's folder.
        config: The whole recorded configuration.
        settings: The options of the loggers.
        tags: Words of the user's.
        notes: A text of the user's, "" for none.
    """

    cell: Mapping[str, Any]
    folder: Path
    config: dict[str, Any]
    settings: LoggerOptions
    tags: list[str]
    notes: str

    @classmethod
    def of(cls, options: Options, folder: Path, config: dict[str, Any]) -> "Card":
        """The card of a run with these options."""
        return cls(
            options.cell, folder, config, options.logger, list(options.tags), options.notes or ""
        )

    @property
    def name(self) -> str:
        """What the run is called: ocgan-digits-8-0."""
        return "{method}-{data}-{inlier}-{seed}".format(**self.cell)

    @property
    def all_tags(self) -> list[str]:
        """The words by which a run is found: those of its cell, then the user's."""
        cell = self.cell
        of_cell = [cell["method"], cell["data"], cell["protocol"], f"select-{cell['select']}"]
        trial = ["debug"] if self.config.get("debug") else []
        return list(dict.fromkeys([*of_cell, *trial, *self.tags]))


class Sink(Logger):
    """A logger of a run; it lives as long as the run does."""

    @property
    def name(self) -> str | None:
        return type(self).__name__

    @property
    def version(self) -> int | str | None:
        return None

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: the whole configuration is handed over at the start."""

    def rewind(self, iteration: int) -> None:
        """The run goes on from the checkpoint of this iteration; 0: from the start."""

    def conclude(self, summary: dict[str, Any], pictures: list[Path]) -> None:
        """Takes the columns of the result (`loggers.summarise`) and the pictures, and closes."""

    def fail(self, reason: str) -> None:
        """Notes why there is no result, and closes."""


def require(module: str, logger: str) -> None:
    """Raises UserError where the library of a logger is not installed."""
    if find_spec(module) is None:
        raise UserError(
            f"logger={logger}: {module} is not installed; pip install 'noveltylab[{logger}]'"
        )


def kept_id(path: Path, pattern: str) -> str:
    """The id that a file keeps; "" without one of this pattern."""
    try:
        identifier = read_text(path).strip()
    except (OSError, ValueError):
        return ""
    return identifier if re.fullmatch(pattern, identifier) else ""


def keep_id(path: Path, identifier: str) -> None:
    """Keeps the id under which an interrupted run goes on."""
    write_atomic(path, f"{identifier}\n")


def first_words(error: Exception) -> str:
    """An error in one line, without a value that may be a key."""
    if isinstance(error, ValidationError):
        sentences = []
        for item in error.errors():
            field = ".".join(map(str, item["loc"]))
            sentences.append(f"{field}: {item['msg']}")
        return "; ".join(sentences)
    return " ".join(str(error).split())[:300]
