"""A detector as one graph of tensors: building it, writing it and comparing it with the method.

`export.py` says what is written beside the graph, and is the command.
"""

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noveltylab.errors import RunFailed

if TYPE_CHECKING:
    from torch import Tensor, nn

    from noveltylab.predict.detector import Detector

#: how far exported scores may lie from the method's, absolute below 1 and relative above
TOLERANCE = 1e-4
#: where the decision stands: ONNX's metadata, or the name of an extra file and .json
KEY = "noveltylab"
Run = Callable[["Tensor"], list[Any]]


class Graph:
    """What is exported of a detector.

    Attributes:
        module: Images to scores.
        names: Names of its outputs, the primary score first.
        example: An input, uint8 (2, C, H, W).
    """

    def __init__(self, detector: "Detector") -> None:
        import torch

        self.example = example_images(detector, 2)
        names = list(detector.scores(self.example))
        names.remove(detector.primary)
        self.names = [detector.primary, *names]
        held_out = {}
        for name, column in detector.held_out.items():
            held_out[name] = torch.from_numpy(column).float()
        self.module = scorer(detector, self.names, held_out)


def scorer(detector: "Detector", names: list[str], held_out: "dict[str, Tensor]") -> "nn.Module":
    """A module: uint8 (B, C, H, W) -> the scores of these names, float32 (B,) each."""
    from torch import nn

    class Scorer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.preprocess = detector.preprocess
            self.method = detector.method

        def forward(self, images: "Tensor") -> "tuple[Tensor, ...]":
            columns = self.method.novelty_score(self.preprocess(images))
            if set(names) - columns.keys():
                references = {name: held_out[name] for name in columns}
                columns |= self.method.combine_scores(columns, references)
            return tuple(columns[name].float() for name in names)

    return Scorer().eval()


def example_images(detector: "Detector", count: int) -> "Tensor":
    """uint8 (count, C, H, W): noise, half of them smooth; always the same."""
    import torch

    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (count, *detector.shape), generator=generator, dtype=torch.uint8)
    half = noise[: count // 2].float()
    smooth = torch.nn.functional.avg_pool2d(half, 5, 1, 2, count_include_pad=False)
    contrasted = (smooth - 128) * 4 + 128
    noise[: count // 2] = contrasted.clamp(0, 255).to(torch.uint8)
    return noise


def _program(module: "nn.Module", example: "Tensor") -> Any:
    import torch

    shapes = ({0: torch.export.Dim("batch")},)
    with torch.no_grad():
        return torch.export.export(module, (example,), dynamic_shapes=shapes, strict=False)


def write_torch(
    module: "nn.Module", names: list[str], example: "Tensor", path: Path, note: str
) -> Run:
    import torch

    torch.export.save(_program(module, example), path, extra_files={f"{KEY}.json": note})
    loaded = torch.export.load(path).module()
    return lambda images: [column.detach().numpy() for column in loaded(images)]


def write_onnx(
    module: "nn.Module", names: list[str], example: "Tensor", path: Path, note: str
) -> Run:
    import torch

    with torch.no_grad():
        program = torch.onnx.export(
            module,
            (example,),
            input_names=["images"],
            output_names=names,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            dynamo=True,
            verbose=False,
            external_data=False,
            # it takes OLED's 1e-12 for nothing, and divides 0 by 0; onnxruntime optimises anyway
            optimize=False,
        )
    assert program is not None
    program.model.metadata_props[KEY] = note
    program.save(str(path), external_data=False)
    session = onnx_session(path)
    return lambda images: list(session.run(names, {"images": images.numpy()}))


def onnx_session(path: Path) -> Any:
    """onnxruntime's session of a file, on the CPU, with as many threads as this process may use."""
    import onnxruntime

    from noveltylab.results.provenance import cores

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = cores()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def compare(detector: "Detector", names: list[str], run: Run) -> None:
    """RunFailed unless the graph gives the method's scores.

    The batches are of other sizes than the example's.
    """
    import numpy as np

    for count in (1, 40):
        images = example_images(detector, count)
        expected = detector.scores(images)
        for name, scores in zip(names, run(images), strict=True):
            scale = np.maximum(np.abs(expected[name]), 1)
            gaps = np.abs(scores - expected[name]) / scale
            gap = float(gaps.max())
            if not gap <= TOLERANCE:
                raise RunFailed(
                    f"the exported {name} is off by {gap:.2g}, more than {TOLERANCE:g}; nothing was written"
                )


def any_batch() -> AbstractContextManager[Any]:
    """Inside, this thread computes two functions of torch by what exporters can write.

    Euclidean `torch.cdist` by a formula that holds for any batch: its own code branches at 25 rows,
    which would fix the batch. The largest value of a map as a maximum: the exporter of torch 2.11
    knows no adaptive max pooling.
    """
    import torch
    from torch.nn import functional
    from torch.overrides import TorchFunctionMode

    class AnyBatch(TorchFunctionMode):
        def __torch_function__(
            self, function: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            kwargs = kwargs or {}
            if function is torch.cdist and kwargs.get("p", 2.0) == 2.0:
                first, second = args
                return _distances(first, second)
            if function is functional.adaptive_max_pool2d and args[1] == 1:
                return _largest(args[0])
            return function(*args, **kwargs)

    return AnyBatch()


def _distances(x: "Tensor", y: "Tensor") -> "Tensor":
    """Euclidean distances (N, M) between rows (N, D) and (M, D)."""
    first = x.double()
    second = y.double()
    norms = first.square().sum(1, keepdim=True) + second.square().sum(1)
    squared = norms - 2 * first @ second.T
    return squared.clamp_min(0).sqrt().to(x.dtype)


def _largest(x: "Tensor") -> "Tensor":
    """The largest value of each map, (N, C, 1, 1), of maps (N, C, H, W)."""
    return x.amax((2, 3), keepdim=True)


@contextmanager
def silence() -> "Iterator[None]":
    """Silences what torch's exporters say about themselves; their failures become one line."""
    from contextlib import redirect_stderr, redirect_stdout
    from io import StringIO

    names = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            yield
    except (OSError, RunFailed):
        raise
    except Exception as error:  # exporters fail in many ways, and each means the same
        text = " ".join(str(error).split())[:200]
        raise RunFailed(
            f"torch cannot export this method: {type(error).__name__}: {text}"
        ) from error
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
