"""Applies a function to images batch by batch, or in batches that are all alike.

An image has the same column to the last bit under `columns_alike`, however many others come with it
and wherever it stands among them.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from noveltylab.data.decode import in_order
from noveltylab.data.preprocess import Preprocess
from noveltylab.methods.base import Method

Tensors = dict[str, Tensor]

#: Images in a batch of `columns_alike`, by the kind of device; a matrix product of another size may
#: add in another order.
ALIKE = {"cpu": 32}
ALIKE_ELSEWHERE = 256


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Inside, new tensors are of this type, that of the weights.

    trainer.precision=64-true makes it float64.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@torch.inference_mode()
def in_batches(
    method: Method,
    preprocess: Preprocess,
    images: Tensor,
    function: Callable[[Tensor], Tensors],
    batch_size: int,
) -> Tensors:
    """Applies `function` to all images (N, C, H, W) uint8, batch by batch.

    On the method's device, in evaluation mode.

    Returns:
        The columns of `function`, concatenated on the CPU; always in float32, whatever the
        precision of training.
    """
    was_training = method.training
    method.eval()
    dtype = dtype_of(method)
    batches = []
    with default_dtype(dtype):
        for part in torch.split(images, batch_size):
            x = preprocess(part.to(method.device)).to(dtype)
            x = x.contiguous(memory_format=torch.channels_last)
            batches.append(function(x))
    method.train(was_training)
    columns = {}
    for name in batches[0]:
        column = [batch[name].float() for batch in batches]
        columns[name] = torch.cat(column).cpu()
    return columns


#: How weights of convolutions are laid out, by their number of dimensions.
LAYOUTS = {4: torch.channels_last, 5: torch.channels_last_3d}


def channels_last(method: Method) -> None:
    """Lays the weights of convolutions out with the channels last, in place."""
    for tensor in (*method.parameters(), *method.buffers()):
        if tensor.dim() in LAYOUTS:
            tensor.data = tensor.data.to(memory_format=LAYOUTS[tensor.dim()])


def dtype_of(method: Method) -> torch.dtype:
    """The type of the method's weights; float32 if it has none."""
    for parameter in method.parameters():
        return parameter.dtype
    return torch.float32


def alike_batch(device: torch.device) -> int:
    """The size of every batch in which `score_alike` scores."""
    return ALIKE.get(device.type, ALIKE_ELSEWHERE)


def columns_alike(
    method: Method,
    preprocess: Preprocess,
    images: Tensor,
    function: Callable[[Tensor], Tensors],
) -> Tensors:
    """The columns of `function` over uint8 images (N, C, H, W), N >= 1, as `score_alike` has them."""
    size = alike_batch(method.device)
    filled = images
    missing = -len(images) % size
    if missing:
        padding = images[-1:].expand(missing, *images.shape[1:])
        filled = torch.cat([images, padding])
    columns = in_batches(method, preprocess, filled, function, size)
    return {name: column[: len(images)] for name, column in columns.items()}


def columns_in_threads(
    method: Method,
    preprocess: Preprocess,
    images: Tensor,
    function: Callable[[Tensor], Tensors],
) -> Tensors:
    """As `columns_alike`, the same bits, by all of torch's threads."""

    def part_columns(part: Tensor) -> Tensors:
        return columns_alike(method, preprocess, part, function)

    with single_threads() as threads:
        parts = torch.split(images, alike_batch(method.device))
        batches = list(in_order(part_columns, parts, threads, threads))
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


@contextmanager
def single_threads() -> Iterator[int]:
    """Inside, a thread that starts computes by itself alone.

    Gives how many such threads torch would use.

    Threads that share one batch wait for each other at every layer.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)


@torch.inference_mode()
def features_in_batches(method: Method, features: Tensor, batch_size: int) -> Tensors:
    """The scores of features (N, D) of a frozen network: name -> (N,), float32 on the CPU."""
    was_training = method.training
    method.eval()
    parts = torch.split(features.to(method.device), batch_size)
    batches = [method.score_features(part) for part in parts]
    method.train(was_training)
    columns = {}
    for name in batches[0]:
        columns[name] = torch.cat([batch[name].float() for batch in batches]).cpu()
    return columns


def features_alike(method: Method, features: Tensor) -> Tensors:
    """As `features_in_batches`, the same bits as the images have under `columns_alike`."""
    size = alike_batch(method.device)
    missing = -len(features) % size
    padding = features[-1:].expand(missing, -1)
    with single_threads():
        columns = features_in_batches(method, torch.cat([features, padding]), size)
    return {name: column[: len(features)] for name, column in columns.items()}
