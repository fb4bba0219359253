"""What a run does to its process: puts it back for a caller who goes on, and imports torch soon."""

import gc
import importlib
import logging
import os
import random
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from noveltylab.command.signals import SIGNALS

#: Loggers whose level or handlers a run changes.
LOGGERS = ("noveltylab", "lightning.pytorch", "lightning.fabric")


@contextmanager
def importing() -> Iterator[None]:
    """The first import of torch and Lightning, without the collector of garbage meanwhile.

    It would walk through their hundred thousands of objects again and again, a second in all, and
    finds nothing: they stay. So it leaves them out afterwards as well.
    """
    if "noveltylab.run.pipeline" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.freeze()


@contextmanager
def restored() -> Iterator[None]:
    """After the block the process is as before, whatever the block has set.

    What a run imports is imported before the block, and stays.
    """
    with ExitStack() as stack:
        stack.enter_context(same_random())
        importlib.import_module("noveltylab.run.pipeline")
        stack.enter_context(warnings.catch_warnings())
        stack.enter_context(_environment())
        stack.enter_context(_logging())
        stack.enter_context(_signals())
        stack.enter_context(_random_numbers())
        stack.enter_context(_torch())
        yield


@contextmanager
def _environment() -> Iterator[None]:
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        for name, value in before.items():
            if os.environ.get(name) != value:
                os.environ[name] = value


@contextmanager
def _logging() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in LOGGERS]
    before = [(log, log.level, log.propagate, list(log.handlers)) for log in loggers]
    raises = logging.raiseExceptions
    try:
        yield
    finally:
        logging.raiseExceptions = raises
        for log, level, propagate, handlers in before:
            log.setLevel(level)
            log.propagate = propagate
            log.handlers[:] = handlers


@contextmanager
def _signals() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers, and so nobody does here
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:  # not one of Python's
                signal.signal(number, handler)


@contextmanager
def same_random() -> Iterator[None]:
    """Keeps the state of Python's `random`, which some libraries draw from when imported."""
    before = random.getstate()
    try:
        yield
    finally:
        random.setstate(before)


@contextmanager
def _random_numbers() -> Iterator[None]:
    import torch

    from noveltylab.training.estimate import random_state_kept

    count = torch.cuda.device_count() if torch.cuda.is_initialized() else 0  # type: ignore[no-untyped-call]  # untyped in torch
    with random_state_kept([torch.device("cuda", index) for index in range(count)]):
        yield


@contextmanager
def _torch() -> Iterator[None]:
    import torch

    dtype, threads = torch.get_default_dtype(), torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    cudnn = torch.backends.cudnn
    benchmark, exact = cudnn.benchmark, cudnn.deterministic
    precision = torch.get_float32_matmul_precision()
    try:
        with torch.set_grad_enabled(True):  # as in the command, whatever surrounds the call
            yield
    finally:
        torch.set_default_dtype(dtype)
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic, warn_only=warns)
        cudnn.benchmark, cudnn.deterministic = benchmark, exact
        torch.set_float32_matmul_precision(precision)
