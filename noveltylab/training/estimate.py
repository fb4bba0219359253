"""How long a run will take, said before the time is spent.

Scoring and validation are timed on a few images before training begins, training on its first
iterations. No random number is drawn for it and no weight changes: a run's numbers are those of a
run without an estimate.
"""

import logging
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback

from noveltylab.command.durations import exactly, in_words
from noveltylab.data.datamodule import NoveltyData
from noveltylab.methods.base import Method
from noveltylab.options import TrainerOptions
from noveltylab.scoring.apply import gpus, scores_by_training_set, validation_loss
from noveltylab.scoring.batches import in_batches

log = logging.getLogger("noveltylab")

#: A run that is to take longer than this is warned of, in seconds.
LONG = 3600.0
#: An estimate of training is made of so many seconds of it, but a single chunk may take longer.
TRAIN_SECONDS = 1.0
#: Each measured batch is so many times as large as the one before ...
GROWTH = 4
#: ... unless it is to take longer than this.
PROBE_SECONDS = 0.6
#: What is said of a method that is fitted once is worth a line from so many seconds of scoring on.
WORTH_A_LINE = 10.0
#: Options that make a method smaller or its score cheaper, the most helpful one first.
SMALLER = ("search_steps", "validation_steps", "mining_steps", "channels", "width")


@contextmanager
def random_state_kept(devices: Sequence[torch.device]) -> Iterator[None]:
    """Whatever random numbers are drawn inside, those after it are the ones that would have come.

    Args:
        devices: GPUs whose random numbers are kept as well.
    """
    numpy_state = np.random.get_state()  # noqa: NPY002  # the global state, to keep it
    python_state = random.getstate()
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        np.random.set_state(numpy_state)  # noqa: NPY002  # the same
        random.setstate(python_state)


@dataclass(frozen=True)
class Cost:
    """Seconds of each batch, however small, and of each image in it."""

    batch: float
    image: float

    def of(self, count: int, batch_size: int) -> float:
        """Seconds of so many images in batches of that size."""
        batches = math.ceil(count / batch_size)
        return batches * self.batch + count * self.image

    def divided(self, share: float) -> "Cost":
        """The cost of all the work, where only a share of it was done."""
        return Cost(self.batch / share, self.image / share)


def measure_cost(run: Callable[[int], object], batch_size: int) -> Cost:
    """The cost of `run`, which takes a number of images, measured on a few of them.

    Args:
        run: Runs one batch of so many images.
        batch_size: How many a batch has at most.
    """
    run(1)  # what is done once is not to be counted
    count = 1
    first_seconds = seconds = _seconds(run, 1)
    while count < batch_size and GROWTH * seconds <= PROBE_SECONDS:
        count = min(GROWTH * count, batch_size)
        seconds = _seconds(run, count)
    if count == 1:
        return Cost(0.0, first_seconds)
    image = max(0.0, seconds - first_seconds) / (count - 1)
    return Cost(max(0.0, seconds - image * count), image)


def _seconds(run: Callable[[int], object], count: int) -> float:
    """The shorter of two times, which another program's turn has not made longer.

    A long one is taken once.
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
    """What training and scoring will take, in seconds under the names of a result.

    Attributes:
        seconds: `train`, `score` and, with a rule that uses labels, `labelled`; for the whole run,
            what an interrupted one had spent before included. Empty until it is known.

    Args:
        settings: The trainer's options.
        method_options: The options of the method; an advice names those that make it faster.
        data: The images to train on and to score.
        spent: Gives the seconds that training has taken so far.
    """

    def __init__(
        self,
        settings: TrainerOptions,
        method_options: Mapping[str, Any],
        data: NoveltyData,
        spent: Callable[[], dict[str, float]],
    ) -> None:
        self.settings = settings
        self.method_options = method_options
        self.data = data
        self.spent = spent
        self.seconds: dict[str, float] = {}
        #: of one look at the held-out inliers, and of one at labelled images
        self.look = {"train": 0.0, "labelled": 0.0}
        #: of training, from the estimate on; None before it
        self.remaining: dict[str, float] | None = None
        #: epochs from the estimate on, the rest of the one that runs included
        self.epochs_to_go = 0.0
        #: when the chunk began, and at which iteration
        self.chunk_time = 0.0
        self.chunk_iteration = 0
        #: seconds and iterations of the first chunk, which warms up
        self.first_chunk = (0.0, 0)
        #: those of the chunks after it
        self.later_chunks = (0.0, 0)

    # Scoring, before training.

    def probe(self, method: Method, labelled_images: int) -> None:
        """Times the score and the validation loss of a few images, and warns of long scoring.

        Args:
            method: On its device, prepared; it need not be trained.
            labelled_images: How many images a rule that uses labels scores in each of its looks.
        """
        data, batch_size = self.data, self.settings.score_batch_size

        def score(count: int) -> object:
            images = data.test[:count]
            return in_batches(method, data.preprocess, images, method.novelty_score, batch_size)

        def look(count: int) -> float:
            return validation_loss(method, data.preprocess, data.val[:count], batch_size)

        with random_state_kept(gpus(method)), method.shortened() as (score_share, loss_share):
            cost = measure_cost(score, min(batch_size, len(data.test))).divided(score_share)
            if method.iterative and len(data.val):
                look_cost = measure_cost(look, min(batch_size, len(data.val))).divided(loss_share)
                self.look["train"] = look_cost.of(len(data.val), batch_size)
                # a pass over the training images besides
                if self.settings.batch_norm == "anew" or scores_by_training_set(method):
                    self.look["train"] += look_cost.of(len(data.train), data.batch_size)
        held_out = cost.of(len(data.val), batch_size)
        if type(method).combine_scores is not Method.combine_scores:
            held_out *= 2  # the test takes the scores of the held-out inliers along
        self.seconds["score"] = cost.of(len(data.test), batch_size) + held_out
        self.look["labelled"] = cost.of(labelled_images, batch_size)
        if not method.iterative:
            self._say_scoring()
        elif self.seconds["score"] > LONG:
            words = in_words(self.seconds["score"])
            self._warn(f"scoring {self._images()} will take about {words}", "scoring")

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
        self.chunk_iteration = pl_module.iteration

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.chunk_time = time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *_: object
    ) -> None:
        """A chunk has ended, and its losses were read: the device waits for nothing."""
        if self.remaining is not None:
            return
        assert isinstance(pl_module, Method)
        now = time.perf_counter()
        seconds = now - self.chunk_time
        iterations = pl_module.iteration - self.chunk_iteration
        self.chunk_time, self.chunk_iteration = now, pl_module.iteration
        if not self.first_chunk[1]:
            self.first_chunk = (seconds, iterations)
        else:
            later_seconds, later_iterations = self.later_chunks
            self.later_chunks = (later_seconds + seconds, later_iterations + iterations)
        # a second of later chunks is enough; where one chunk takes long, it has to be
        first_suffices = not self.later_chunks[1] and self.first_chunk[0] >= 10 * TRAIN_SECONDS
        if first_suffices or self.later_chunks[0] >= TRAIN_SECONDS:
            self._say(self._settle(trainer, pl_module))

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.remaining is None and self.first_chunk[1]:  # over before it could be said
            assert isinstance(pl_module, Method)
            self._settle(trainer, pl_module)

    def _settle(self, trainer: L.Trainer, method: Method) -> dict[str, float]:
        """Sets and returns the seconds that remain, by the rate of the iterations so far."""
        seconds, iterations = self.first_chunk
        if self.later_chunks[1]:
            seconds, iterations = self.later_chunks
        epochs = int(trainer.max_epochs or 1)
        epoch_iterations = len(self.data.train) // trainer.world_size // self.data.batch_size
        iterations_to_go = max(0, epochs * epoch_iterations - method.iteration)
        self.epochs_to_go = iterations_to_go / max(1, epoch_iterations)
        every = self.settings.val_every
        looks = math.ceil(epochs / every) - trainer.current_epoch // every
        self.remaining = {
            "train": seconds / iterations * iterations_to_go + looks * self.look["train"],
            "labelled": looks * self.look["labelled"],
        }
        spent = self.spent()
        for name, remaining_seconds in self.remaining.items():
            if name == "train" or self.look["labelled"]:
                self.seconds[name] = spent[name] + remaining_seconds
        return self.remaining

    def _say(self, remaining: dict[str, float]) -> None:
        """One line, and a warning of what takes longer than an hour."""
        training = remaining["train"] + remaining["labelled"]
        about = "at most" if self.settings.patience else "about"  # training may stop early
        epochs = "1 more epoch"
        if self.epochs_to_go > 1:
            each = exactly(training / self.epochs_to_go)
            epochs = f"{math.ceil(self.epochs_to_go)} more epochs, {each} each"
        line = (
            f"{about} {in_words(training)} of training ({epochs}), "
            f"{in_words(self.seconds['score'])} of scoring at this rate"
        )
        if training > LONG:
            self._warn(line, "training")
        else:
            log.info(line)

    def _warn(self, line: str, stage: str) -> None:
        """The line, and what would make it shorter."""
        remedies = []
        limit = f"data.limit_train (now {len(self.data.train):,} images)"
        if stage == "training":
            remedies.append(f"{limit}, fewer trainer.max_epochs")
        elif stage == "fitted":
            remedies.append(limit)
        smaller = []
        for name in SMALLER:
            value = self.method_options.get(name)
            if isinstance(value, int | float):
                smaller.append(f"method.{name} (now {value})")
        if smaller:
            remedies.append(f"a smaller {' or '.join(smaller)}")
        words = "; ".join(remedies) or "a smaller data.size"
        log.warning(f"WARNING: {line}. Shorter with: {words}")
