"""Strided layers forward and with both gradients: torch's, as matrix products, and by Winograd's algorithm, in turns.

    python -m benchmarks.layers                  # batch 64, all cores
    python -m benchmarks.layers --threads 1 --batch 32

Milliseconds in float32, lower quartile of eleven turns; `error`: largest difference from torch's output, of its largest value.
"""

import argparse
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.iteration import turns
from noveltylab.nets.cpu import conv, winograd

#: Channels in and out, side of the larger map: OCGAN's and CA-Entropy's layers, and the same at
#: half the width.
LAYERS = ((64, 128, 16), (128, 256, 8), (64, 128, 8))
TURNS = 11


def quartiles(functions: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """Milliseconds of each, taken in turns; the first turn is not counted."""
    return {
        name: 1000 * sorted(values[1:])[TURNS // 4]
        for name, values in turns(functions, TURNS + 1).items()
    }


def trained(function: Callable[[], Tensor], leaves: tuple[Tensor, Tensor], pull: Tensor) -> None:
    torch.autograd.grad(function(), leaves, pull)


def scored(function: Callable[[], Tensor]) -> None:
    with torch.no_grad():
        function()


def maps(*shape: int) -> Tensor:
    return torch.randn(shape).contiguous(memory_format=torch.channels_last)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, help="default: all cores")
    parser.add_argument("--batch", type=int, default=64)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    print(f"{torch.get_num_threads()} threads, batch {arguments.batch}, torch {torch.__version__}")
    for kernel, padding in ((4, 1), (5, 2)):
        for inputs, outputs, side in LAYERS:
            big, small = (
                maps(arguments.batch, inputs, side, side),
                maps(arguments.batch, outputs, side // 2, side // 2),
            )
            weight = maps(outputs, inputs, kernel, kernel).div_(inputs).requires_grad_()
            x, y = big.clone().requires_grad_(), small.clone().requires_grad_()
            down = {
                "torch": partial(F.conv2d, x, weight, None, 2, padding),
                "products": partial(conv.Convolution.apply, x, weight, 2, padding),
                "winograd": partial(winograd.Convolution.apply, x, weight, padding),
            }
            up = {
                "torch": partial(F.conv_transpose2d, y, weight, None, 2, padding, kernel - 4),
                "products": partial(conv.Transposed.apply, y, weight, 2, padding, (side, side)),
                "winograd": partial(winograd.Transposed.apply, y, weight, padding),
            }
            for name, functions, leaf, pull in (("", down, x, small), (" transposed", up, y, big)):
                exact, winograd_output = (
                    functions["torch"]().detach(),
                    functions["winograd"]().detach(),
                )
                error = float((exact - winograd_output).abs().max() / exact.abs().max())
                both = quartiles(
                    {
                        key: partial(trained, make, (leaf, weight), pull)
                        for key, make in functions.items()
                    }
                )
                forward = quartiles({key: partial(scored, make) for key, make in functions.items()})
                times = ", ".join(
                    f"{key} {value:.1f} (forward {forward[key]:.1f})" for key, value in both.items()
                )
                print(
                    f"{kernel} x {kernel}, {inputs} x {outputs}, {side} px{name}: {times} ms, "
                    f"x {both['torch'] / both['winograd']:.2f}, error {error:.0e}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
