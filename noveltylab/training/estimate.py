"""How long a run will take, said before the time is spent.

Scoring and validation are timed on a few images before training begins, training on its first
iterations. No random number is drawn for it and no weight changes: a run's numbers are those of a
run without an estimate.
"""

import logging
import math
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback

from noveltylab.data.datamodule import NoveltyData
from noveltylab.methods.base import Method
from noveltylab.options import Options
from noveltylab.scoring.apply import in_batches, validation_loss

log = logging.getLogger("noveltylab")

#: A run that is to take longer than this is warned of, in seconds.
LONG = 3600.0
#: An estimate of training is made of so many seconds of it, but a single chunk may take longer.
TRAIN_SECONDS = 1.0
#: A batch is measured that is GROWTH times as large as the one before, unless it is to take longer
#: than this.
PROBE_SECONDS, GROWTH = 0.6, 4
#: What is said of a method that is fitted once is worth a line from so many seconds of scoring on.
WORTH_A_LINE = 10.0
#: Options that make a method smaller or its score cheaper, the most helpful one first.
SMALLER = ("search_steps", "validation_steps", "mining_steps", "channels", "width")


def in_words(seconds: float) -> str:
    """A length of time as one says it: 12 s, 40 min, 2.5 h, 21 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    hours = seconds / 3600
    return f"{hours:.1f} h" if hours < 9.95 else f"{hours:.0f} h"


@contextmanager
def random_state_kept(device: torch.device) -> Iterator[None]:
    """Whatever random numbers are drawn inside, those after it are the ones that would have come."""
    devices = [device] if device.type == "cuda" else []
    of_numpy, of_python = np.random.get_state(), random.getstate()  # noqa: NPY002  # the global state, to keep it
    with torch.random.fork_rng(devices):
        yield
    np.random.set_state(of_numpy)  # noqa: NPY002
    random.setstate(of_python)


@dataclass(frozen=True)
class Cost:
    """Seconds of each batch, however small, and of each image in it."""

    batch: float
    image: float

    def of(self, count: int, batch_size: int) -> float:
        """Seconds of so many images in batches of that size."""
        return math.ceil(count / batch_size) * self.batch + count * self.image

    def divided(self, share: float) -> "Cost":
        """The cost of all the work, where only a share of it was done."""
        return Cost(self.batch / share, self.image / share)


def measure_cost(run: Callable[[int], object], most: int) -> Cost:
    """The cost of `run`, which takes a number of images, measured on a few of them.

    Args:
        run: Runs one batch of so many images.
        most: How many a batch has at most.
    """
    run(1)  # what is done once is not to be counted
    one = last = _seconds(run, 1)
    count = 1
    while count < most and GROWTH * last <= PROBE_SECONDS:
        count = min(GROWTH * count, most)
        last = _seconds(run, count)
    if count == 1:
        return Cost(0.0, one)
    image = max(0.0, last - one) / (count - 1)
    return Cost(max(0.0, last - image * count), image)


def _seconds(run: Callable[[int], object], count: int) -> float:
    """The shorter of two times: another program's turn in between is not counted. A long one is
    taken once.
    """
    start = time.perf_counter()
    run(count)
    first = time.perf_counter() - start
    if first > PROBE_SECONDS / 4:
        return first
    start = time.perf_counter()
    run(count)
    return min(first, time.perf_counter() - start)


class Estimate(Callback):
    """What training and scoring will take, in seconds by the names under which a result has what
    they took.

    Attributes:
        seconds: `train`, `score` and, with a rule that uses labels, `labelled`; for the whole run,
            what an interrupted one had spent before included. Empty until it is known.
    """

    def __init__(
        self, options: Options, data: NoveltyData, spent: Callable[[], dict[str, float]]
    ) -> None:
        self.options, self.data, self.spent = options, data, spent
        self.seconds: dict[str, float] = {}
        #: of one look at the held-out inliers, and of one at labelled images
        self.look = {"train": 0.0, "labelled": 0.0}
        self.done = False
        self.mark = 0.0
        self.left: dict[str, float] = {}
        self.iteration = 0
        self.first = (0.0, 0)  # seconds and iterations of the first chunk, which warms up
        self.later = (0.0, 0)  # those of the chunks after it

    # Scoring, before training.

    def probe(self, method: Method, labelled_images: int) -> None:
        """Times the score and the validation loss of a few images; warns where scoring alone will
        take long.

        Args:
            method: On its device, prepared; it need not be trained.
            labelled_images: How many images a rule that uses labels scores in each of its looks.
        """
        data, batch_size = self.data, self.options.trainer.score_batch_size

        def score(count: int) -> object:
            return in_batches(
                method, data.preprocess, data.test[:count], method.novelty_score, batch_size
            )

        def look(count: int) -> float:
            return validation_loss(method, data.preprocess, data.val[:count], batch_size)

        with random_state_kept(method.device), method.shortened() as (of_score, of_loss):
            scoring = measure_cost(score, min(batch_size, len(data.test))).divided(of_score)
            if method.iterative and len(data.val):
                looking = measure_cost(look, min(batch_size, len(data.val))).divided(of_loss)
                self.look["train"] = looking.of(len(data.val), batch_size)
                # a pass over the training images besides
                if self.options.trainer.batch_norm == "anew":
                    self.look["train"] += looking.of(len(data.train), data.batch_size)
        # where columns are combined, the test takes the scores of the held-out inliers along
        combines = type(method).combine_scores is not Method.combine_scores
        held_out = scoring.of(len(data.val), batch_size) * (2 if combines else 1)
        self.seconds["score"] = scoring.of(len(data.test), batch_size) + held_out
        self.look["labelled"] = scoring.of(labelled_images, batch_size)
        if not method.iterative:
            self._say_scoring()
            return
        if self.seconds["score"] > LONG:
            self._warn(
                f"scoring {self._images()} will take about {in_words(self.seconds['score'])}",
                "scoring",
            )

    def _say_scoring(self) -> None:
        seconds = self.seconds["score"]
        line = f"about {in_words(seconds)} of scoring at this rate ({self._images()})"
        if seconds > LONG:
            self._warn(line, "fitted")
        elif seconds >= WORTH_A_LINE:
            log.info(line)

    def _images(self) -> str:
        return f"{len(self.data.test) + len(self.data.val):,} images"

    # Training, on its first iterations.

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, Method)
        self.iteration = pl_module.iteration

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.mark = time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *_: object
    ) -> None:
        """A chunk has ended, and its losses were read: the device waits for nothing."""
        if self.done:
            return
        assert isinstance(pl_module, Method)
        now = time.perf_counter()
        seconds, iterations = now - self.mark, pl_module.iteration - self.iteration
        self.mark, self.iteration = now, pl_module.iteration
        if not self.first[1]:
            self.first = (seconds, iterations)
        else:
            self.later = (self.later[0] + seconds, self.later[1] + iterations)
        # a second of later chunks is enough; where one chunk takes long, it has to be
        if self.later[0] >= TRAIN_SECONDS or (
            not self.later[1] and self.first[0] >= 10 * TRAIN_SECONDS
        ):
            self._settle(trainer, pl_module)
            self._say()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self.done and self.first[1]:  # over before there was anything to say
            assert isinstance(pl_module, Method)
            self._settle(trainer, pl_module)

    def _settle(self, trainer: L.Trainer, method: Method) -> None:
        """What is left, by the rate of the iterations so far."""
        self.done = True
        seconds, iterations = self.later if self.later[1] else self.first
        epochs = int(trainer.max_epochs or 1)
        planned = epochs * (len(self.data.train) // trainer.world_size // self.data.batch_size)
        every = self.options.trainer.val_every
        looks = math.ceil(epochs / every) - (trainer.current_epoch // every)
        self.left = {
            "train": seconds / iterations * max(0, planned - method.iteration)
            + looks * self.look["train"],
            "labelled": looks * self.look["labelled"],
        }
        spent = self.spent()
        for name, left in self.left.items():
            if name == "train" or self.look["labelled"]:
                self.seconds[name] = spent[name] + left

    def _say(self) -> None:
        """One line, and a warning of what takes longer than an hour."""
        training = self.left["train"] + self.left["labelled"]
        about = "at most" if self.options.trainer.patience else "about"  # training may stop early
        line = f"{about} {in_words(training)} of training, {in_words(self.seconds['score'])} of scoring at this rate"
        if training > LONG:
            self._warn(line, "training")
        else:
            log.info(line)

    def _warn(self, line: str, stage: str) -> None:
        """The line, and what would make it shorter."""
        ways = [
            f"method.{name} (now {self.options.method[name]})"
            for name in SMALLER
            if isinstance(self.options.method.get(name), int | float)
        ]
        smaller = f"a smaller {' or '.join(ways)}" if ways else ""
        fewer = {
            "training": f"data.limit_train (now {len(self.data.train):,} images), fewer trainer.max_epochs",
            "fitted": f"data.limit_train (now {len(self.data.train):,} images)",
            "scoring": "",
        }[stage]
        log.warning(
            f"WARNING: {line}. Shorter with: {'; '.join(filter(None, (fewer, smaller))) or 'a smaller data.size'}"
        )
