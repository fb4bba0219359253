"""What a sweep will take, said before it begins, from finished runs that were made the same way.

A finished run stands for a cell where both have the same options that make numbers, on the same
kind of processor with as many threads; class and seed do not matter, and of other epochs the
training is scaled. Nothing is guessed: of a cell without such a run the time is not known. Neither
torch nor an image is loaded here.
"""

import heapq
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from statistics import fmean
from typing import Any

from noveltylab.command.durations import clock, in_words
from noveltylab.errors import UserError
from noveltylab.options import flat_options, kind_of_option
from noveltylab.results.archive import SUFFIX, is_archive, read_archive
from noveltylab.results.provenance import PACKAGE, cores, cpu_name
from noveltylab.results.record import read_result
from noveltylab.sweep.cells import Cell, timing

#: Kept results of this repository; an installed package has none.
KEPT = PACKAGE.parent / "experiments" / "results"
#: Options that change no number, but how long training takes.
TIMED = ("trainer.cuda_graph", "trainer.winograd")
#: Parts of a result's seconds that grow with the epochs.
PER_EPOCH = ("train", "labelled")
#: Finished runs of one method and data set that are read from an output folder.
MOST_READ = 100
#: Where NVIDIA's driver says that it is there.
DRIVER = Path("/proc/driver/nvidia")


@dataclass(frozen=True)
class Machine:
    """What of a machine decides how long a run takes.

    Attributes:
        cpu: The processor's name.
        threads: How many torch computes with; None: unknown.
        has_gpu: Whether a GPU of NVIDIA's computes.
    """

    cpu: str
    threads: int | None
    has_gpu: bool


@dataclass(frozen=True)
class Work:
    """What decides how long a run takes, whatever its class, its seed and its epochs.

    Attributes:
        options: Those that make numbers, without the epochs, and TIMED ones: key and value.
        machine: Where it runs.
    """

    options: frozenset[tuple[str, str]]
    machine: Machine


@dataclass(frozen=True)
class Finished:
    """What a finished run took.

    Attributes:
        config: Its options, as recorded.
        seconds: By part; `total` is the sum of the others.
        counts_epochs: Whether it trained in epochs, so that its time can be scaled by them.
        hardware: Of its provenance.
    """

    config: dict[str, Any]
    seconds: dict[str, float]
    counts_epochs: bool
    hardware: dict[str, Any]

    @property
    def work(self) -> Work:
        """What it did, and where."""
        machine = Machine(
            cpu=str(self.hardware.get("cpu")),
            threads=self.hardware.get("threads"),
            has_gpu=self.hardware.get("gpu") is not None,
        )
        return work_of(self.config, machine)

    def seconds_of(self, epochs: int) -> float | None:
        """What it would have taken with so many epochs; None where that does not follow."""
        total = self.seconds["total"]
        own_epochs = epochs_of(self.config)
        if epochs == own_epochs:
            return total
        if not self.counts_epochs:
            return None
        training = sum(self.seconds.get(part, 0.0) for part in PER_EPOCH)
        return total + training * (epochs / own_epochs - 1)


def finished(result: dict[str, Any]) -> Finished:
    """What the run of a result took; of the result the part that `timing` keeps is enough."""
    return Finished(
        config=result["config"],
        seconds=result["seconds"],
        counts_epochs="epochs" in result,
        hardware=result["provenance"].get("hardware", {}),
    )


def epochs_of(config: dict[str, Any]) -> int:
    """How many epochs a run with these options is to train."""
    return int(config["trainer"]["max_epochs"])


def work_of(config: dict[str, Any], machine: Machine) -> Work:
    """What a run with these options does on a machine.

    Args:
        config: Its options as plain values, as composed or as recorded.
        machine: Where it runs.
    """
    own_images = config["data"].get("classes") == "folders"
    options = set()
    for key, value in flat_options(config).items():
        if key == "trainer.max_epochs":
            continue
        if key in TIMED or kind_of_option(key, own_images) == "numbers":
            options.add((key, str(value)))
    return Work(frozenset(options), machine)


def machine_here(config: dict[str, Any], share: Sequence[str] = ()) -> Machine:
    """This machine, as a run with these options uses it.

    Args:
        config: The options of the run, as plain values.
        share: What a launcher adds to them, such as resources.num_cpus=1.
    """
    threads = config["resources"]["num_cpus"]
    for text in share:
        key, _, value = text.partition("=")
        if key == "resources.num_cpus":
            threads = int(value)
    if threads is None:
        given = os.environ.get("OMP_NUM_THREADS", "")
        threads = int(given) if given.isdigit() else cores()
    is_hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    has_gpu = DRIVER.exists() and not is_hidden and config["trainer"]["accelerator"] != "cpu"
    return Machine(cpu_name(), threads, has_gpu)


class Estimates:
    """What each cell of a sweep takes, by the runs that have finished so far.

    Args:
        cells: All of the sweep.
        share: What the launcher adds to the options of each, such as resources.num_cpus=1.
        kept: Where kept results lie; None: neither these nor the output folders are looked into.
    """

    def __init__(
        self, cells: Sequence[Cell], share: Sequence[str] = (), kept: Path | None = None
    ) -> None:
        self.works: dict[int, Work] = {}
        #: of this sweep since it began, the most telling
        self.now: dict[Work, list[Finished]] = {}
        self.earlier: dict[Work, list[Finished]] = {}
        #: protocol, method and data set -> those of this sweep, whatever their options
        self.alike: dict[tuple[str, ...], list[Finished]] = {}
        waiting = [cell for cell in cells if cell.state == "waiting" and cell.config]
        for cell in waiting:
            self.works[id(cell)] = work_of(cell.config, machine_here(cell.config, share))
        if kept is None or not waiting:
            return
        self._learn(finished(cell.record) for cell in cells if cell.state == "complete")
        for cell in self._unknown(waiting):
            assert cell.output is not None
            self._learn(runs_in(cell.output, *place_of(cell)))
        for cell in self._unknown(waiting):
            self._learn(kept_runs(*place_of(cell), kept))

    def _learn(self, runs: Iterable[Finished]) -> None:
        """Takes over runs that finished before the sweep."""
        for run in runs:
            self.earlier.setdefault(run.work, []).append(run)

    def _unknown(self, waiting: Sequence[Cell]) -> list[Cell]:
        """The cells that no earlier run stands for: one of each output, method and data set."""
        cells: dict[tuple[Path | None, tuple[str, str]], Cell] = {}
        for cell in waiting:
            if self.seconds(cell) is None:
                cells.setdefault((cell.output, place_of(cell)), cell)
        return list(cells.values())

    def add(self, cell: Cell) -> None:
        """Takes over a cell that is done."""
        run = finished(cell.record)
        if id(cell) in self.works:
            self.now.setdefault(self.works[id(cell)], []).append(run)
        self.alike.setdefault(names_of(cell), []).append(run)

    def seconds(self, cell: Cell) -> float | None:
        """What a cell takes, in seconds; None where no run that has finished says it."""
        work = self.works.get(id(cell))
        if work is not None:
            for runs in (self.now.get(work, []), self.earlier.get(work, [])):
                values = scaled(runs, epochs_of(cell.config))
                if values:
                    return fmean(values)
        runs = self.alike.get(names_of(cell), [])
        return fmean(run.seconds["total"] for run in runs) if runs else None

    def forecast(self, cells: Sequence[Cell], at_once: int | None) -> "Forecast":
        """What the cells that wait will take, of which so many run at once."""
        waiting = [cell for cell in cells if cell.state == "waiting"]
        works = {self.works[id(cell)] for cell in waiting if id(cell) in self.works}
        runs = sum(len(self.earlier.get(work, [])) for work in works)
        return Forecast(tuple(map(self.seconds, waiting)), len(cells), at_once, runs)


def scaled(runs: Iterable[Finished], epochs: int) -> list[float]:
    """What runs would have taken with so many epochs, of those of which it follows."""
    values = [run.seconds_of(epochs) for run in runs]
    return [value for value in values if value is not None]


def place_of(cell: Cell) -> tuple[str, str]:
    """The folders of a cell's method and data set."""
    assert cell.folder is not None
    return cell.folder.parts[-4], cell.folder.parts[-3]


def names_of(cell: Cell) -> tuple[str, ...]:
    """Protocol, method and data set of a cell."""
    return tuple(cell.names.get(name, "") for name in ("protocol", "method", "data"))


def runs_in(output: Path, method: str, data: str) -> list[Finished]:
    """Finished runs of a method on a data set in an output folder, at most MOST_READ.

    Those that cannot be read are left out: whoever runs them says why.
    """
    paths = sorted(output.glob(f"*/{escape(method)}/{escape(data)}/inlier*/seed*/result.json"))
    return _read(path.parent for path in paths[:MOST_READ])


def kept_runs(method: str, data: str, kept: Path) -> list[Finished]:
    """The same of the kept results of this repository."""
    runs = []
    place = f"/{method}/{data}/"
    for path in sorted(kept.rglob(f"*{SUFFIX}")):
        if place.encode() in path.read_bytes() and is_archive(path):
            folders = [path / folder for folder in read_archive(path).lines if place in folder]
            runs += _read(folders)
    return runs


def _read(folders: Iterable[Path]) -> list[Finished]:
    runs = []
    for folder in folders:
        try:
            runs.append(finished(timing(read_result(folder))))
        except (OSError, UserError):
            continue
    return runs


def makespan(seconds: Iterable[float], at_once: int) -> float:
    """How long runs take of which so many go at once, each begun in turn as a place gets free."""
    ends = [0.0] * at_once
    for value in seconds:
        heapq.heapreplace(ends, ends[0] + value)
    return max(ends)


@dataclass(frozen=True)
class Forecast:
    """What a sweep will take.

    Attributes:
        seconds: Of each cell that is to be run, in order; None: not known.
        cells: How many the sweep has, complete ones included.
        at_once: How many run at a time; None: as many as the cluster starts.
        runs: From how many finished runs the seconds are.
    """

    seconds: tuple[float | None, ...]
    cells: int
    at_once: int | None
    runs: int

    @property
    def known(self) -> list[float]:
        """The seconds that are known."""
        return [value for value in self.seconds if value is not None]

    def __str__(self) -> str:
        """`12 of 60 cells to run, 2 at a time: about 40 min, by 30 finished runs like them`."""
        count = len(self.seconds)
        head = f"{count} of {self.cells} cells to run, "
        head += (
            f"{self.at_once} at a time" if self.at_once else "as many at a time as there is room"
        )
        if not self.known:
            return f"{head}; how long is not known until the first is complete"
        source = f"by {self.runs} finished {'run' if self.runs == 1 else 'runs'} like them"
        unknown = count - len(self.known)
        if self.at_once is None:
            words = f"about {in_words(max(1.0, sum(self.known)))} one after another"
        else:
            words = f"about {in_words(max(1.0, makespan(self.known, self.at_once)))}"
        if unknown:
            words += f" for {len(self.known)} of them"
            source += f"; {unknown} of {count} cells not known until one like them is complete"
        return f"{head}: {words}, {source}"


def rest(ended: Sequence[float], left: Sequence[float | None], elapsed: float) -> str:
    """`about 0:40:10 left`, at the pace of the cells that have ended; "" while none has.

    Args:
        ended: What each of them took by itself, in seconds.
        left: What each cell that has not ended is to take; None: not known.
        elapsed: Seconds since the sweep began.
    """
    seconds = [value for value in left if value is not None]
    if not left or not sum(ended):
        return ""
    # several at once, and what a run does not count, are in the pace
    pace = elapsed / sum(ended)
    words = clock(pace * sum(seconds))
    unknown = len(left) - len(seconds)
    if unknown:
        return f"at least {words} left ({unknown} of {len(left)} cells not known)"
    return f"about {words} left"
