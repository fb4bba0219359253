"""trainer.precision=auto: float32, or bf16 where it is faster on this machine and its AUROC is known.

Which methods reach the AUROC of float32 in bf16 is read from kept pairs of runs by
`experiments.precision`; no other method is trained in bf16 unless somebody asks for it by name.
"""

import copy
import time
from collections.abc import Callable
from functools import partial

import torch

from noveltylab.data.datamodule import NoveltyData
from noveltylab.errors import UserError
from noveltylab.methods.base import Batch, Method
from noveltylab.scoring.batches import channels_last
from noveltylab.training.estimate import random_state_kept

FLOAT32 = "32-true"
BF16 = "bf16-mixed"
#: Methods whose mean AUROC differs by less than 0.01 between the two, over twelve pairs of runs.
SAME_IN_BF16 = frozenset({"nda", "ocgan"})
#: Iterations of each that are timed, the first one apart.
ITERATIONS = 3
#: Taken is bf16 if its time is below this share of the time in float32.
WORTHWHILE = 0.9
#: Training images that a trial is prepared with.
IMAGES = 4096


def choose_precision(
    name: str, method: Method, data: NoveltyData, device: torch.device
) -> tuple[str, str]:
    """The precision that a run with trainer.precision=auto trains in, and why, in one line.

    No random number is drawn for it and neither the method nor its data change.

    Args:
        name: The method's, as in method=<name>.
        method: Built, with its initial weights.
        data: Its images, not yet on a device.
        device: Where it is to train.

    Raises:
        UserError: The method cannot be prepared with these images.
    """
    if not method.iterative:
        precision, reason = FLOAT32, "it is fitted once, in float32"
    elif name not in SAME_IN_BF16:
        precision, reason = FLOAT32, f"no kept runs show that {name} has the same AUROC in bf16"
    else:
        try:
            seconds = time_both(method, data, device)
        except ValueError as error:  # as the training would
            raise UserError(str(error)) from None
        share = seconds[BF16] / seconds[FLOAT32]
        precision = BF16 if share < WORTHWHILE else FLOAT32
        reason = f"an iteration in bf16 takes {share:.2f} times what it takes in float32"
    return precision, f"trainer.precision=auto: {precision}; {reason}"


def time_both(method: Method, data: NoveltyData, device: torch.device) -> dict[str, float]:
    """Seconds of an iteration in each precision, the shortest of a few taken in turns."""
    with random_state_kept([device] if device.type == "cuda" else []):
        updates = build_updates(method, data, device)
        seconds: dict[str, list[float]] = {precision: [] for precision in updates}
        for _ in range(1 + ITERATIONS):
            for precision, update in updates.items():
                seconds[precision].append(timed(update, device))
    return {precision: min(times[1:]) for precision, times in seconds.items()}


def build_updates(
    method: Method, data: NoveltyData, device: torch.device
) -> dict[str, Callable[[], object]]:
    """Precision -> one iteration in it, of a copy of the method, on the first training images."""
    images = data.preprocess(data.train[:IMAGES]).to(device)
    prepared = copy.deepcopy(method).to(device)
    prepared.prepare(images)
    channels_last(prepared)
    prepared.train()
    x = images[: data.batch_size].contiguous(memory_format=torch.channels_last)
    batch = Batch(x, torch.arange(len(x), device=device))
    return {
        precision: partial(update_in, precision, copy.deepcopy(prepared), batch)
        for precision in (FLOAT32, BF16)
    }


def update_in(precision: str, method: Method, batch: Batch) -> object:
    """One iteration of the method in a precision."""
    with torch.autocast(batch.x.device.type, torch.bfloat16, enabled=precision == BF16):
        return method.update(batch)


def timed(update: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call, the device's work included."""
    start = time.perf_counter()
    update()
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter() - start
