"""The whole `update` of a method as one CUDA graph: recorded once, then replayed without Python.

Generic over methods: `update` asks the device for nothing, its shapes are static, and
`Method.phase` names what else decides which kernels run (OCGAN's mining, OLED's epochs of the mask
module). The first iterations of each phase run eagerly, as real training: optimizers make their
state, libraries choose their kernels. What cannot be recorded goes on eagerly, and says so.
"""

import logging
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

from noveltylab.errors import UserError

log = logging.getLogger("noveltylab")

Losses = dict[str, Tensor]
#: takes what is to be recorded; returns a function that replays it, and the tensors that each
#: replay fills
Recorder = Callable[[Callable[[], Losses]], tuple[Callable[[], None], Losses]]
#: eager iterations before a phase is recorded
WARM_UP = 3


def record_cuda(function: Callable[[], Losses]) -> tuple[Callable[[], None], Losses]:
    """Recording does not run anything: the iteration is done by the first replay."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = function()
    return graph.replay, outputs


class Graphed:
    """Is called in place of a method's `update`.

    The batch has x (B, C, H, W) channels last and index (B,), on the method's device.
    """

    def __init__(self, method: Any, must: bool = False, record: Recorder = record_cuda) -> None:
        self.method = method
        self.must = must
        self.record = record
        self.graphs: dict[Hashable, tuple[Callable[[], None], Losses, Any]] = {}
        self.iterations: dict[Hashable, int] = {}
        self.off = False

    def take(self, optimizers: list[torch.optim.Optimizer]) -> None:
        """Makes optimizers that count their steps do it on the device."""
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                if "capturable" in group:
                    group["capturable"] = True

    def __call__(self, batch: Any) -> Losses:
        key = (self.method.phase, *batch.x.shape)
        if key not in self.graphs:
            self.iterations[key] = self.iterations.get(key, 0) + 1
            if self.off or self.iterations[key] <= WARM_UP or not self._recorded(key, batch):
                return self._eager(batch)
        replay, outputs, static_batch = self.graphs[key]
        static_batch.x.copy_(batch.x)
        static_batch.index.copy_(batch.index)
        replay()
        # the next replay overwrites them
        return {name: value.clone() for name, value in outputs.items()}

    def _eager(self, batch: Any) -> Losses:
        if batch.x.device.type != "cuda":
            return dict(self.method.update(batch))
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # as torch asks of what is recorded afterwards
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            losses = dict(self.method.update(batch))
        torch.cuda.current_stream().wait_stream(side)
        return losses

    def _recorded(self, key: Hashable, batch: Any) -> bool:
        """Records the phase; False where that fails, and then for good."""
        x = batch.x.clone(memory_format=torch.preserve_format)
        static_batch = type(batch)(x, batch.index.clone())
        # casts made before belong to no graph, those made inside to no other
        torch.clear_autocast_cache()
        for parameter in self.method.parameters():
            parameter.grad = None
        try:
            replay, outputs = self.record(lambda: dict(self.method.update(static_batch)))
            self.graphs[key] = (replay, outputs, static_batch)
        except Exception as error:  # whatever a library does that cannot be recorded
            reason = " ".join(str(error).split())[:200]
            if self.must:
                name = type(self.method).__name__
                raise UserError(
                    f"trainer.cuda_graph=on: {name} cannot be recorded ({reason})"
                ) from error
            log.warning(
                f"no CUDA graph, training goes on without: {type(error).__name__}: {reason}"
            )
            self.off = True
        torch.clear_autocast_cache()
        return not self.off


def why_not(method: Any, device: torch.device, precision: str) -> str | None:
    """The reason why `update` cannot be recorded as far as known beforehand, None if it may be."""
    if device.type != "cuda":
        return f"the device is {device.type}"
    if not method.capturable:
        return f"{type(method).__name__} does not say that it can be recorded"
    if precision == "16-mixed":
        return "the gradient scaler of trainer.precision=16-mixed asks the device for values"
    return None


def graphed(method: Any, mode: str, device: torch.device, precision: str) -> Graphed | None:
    """What `trainer.cuda_graph` asks for; None without a graph.

    Args:
        method: Whose `update` is recorded.
        mode: off, auto (where possible; the log says why not) or on (else a UserError).
        device: Of the method.
        precision: The trainer's.
    """
    if mode == "off":
        return None
    reason = why_not(method, device, precision)
    if reason is None:
        return Graphed(method, must=mode == "on")
    if mode == "on":
        raise UserError(f"trainer.cuda_graph=on: {reason}")
    log.info(f"no CUDA graph: {reason}")
    return None
