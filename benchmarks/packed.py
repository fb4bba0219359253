"""Several runs of one method as one stacked step, against the same runs one after another: is packing worth it?

    python -m benchmarks.packed                    # OCGAN's encoder and decoder at 32 pixels, 4 runs, batch 64
    python -m benchmarks.packed --runs 10 --device cuda

One iteration of a denoising auto-encoder: forward, squared error, backward. apart: one run after another; vmap: torch.func's
stacked parameters (batch norm on the batch's statistics alone); grouped: the runs' first two convolutions as grouped ones.
In turns; medians.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.nn import functional as F

from noveltylab.methods.ocgan import decoder, encoder
from noveltylab.results.provenance import provenance


def plain(network: nn.Module) -> nn.Module:
    """torch's own layers (vmap knows no others), without running statistics or dropout."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.__class__ = nn.Conv2d
        elif isinstance(module, nn.ConvTranspose2d):
            module.__class__ = nn.ConvTranspose2d
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.track_running_stats = False
            module.running_mean = module.running_var = module.num_batches_tracked = None
        elif isinstance(module, nn.ReLU | nn.LeakyReLU):
            module.inplace = False
    return network


def contenders(runs: int, batch: int, device: str) -> dict[str, Callable[[], object]]:
    """The steps to be timed, by name."""
    networks = [
        plain(nn.Sequential(encoder(1, 64, 16, 4, 2), decoder(1, 64, 16, 4, 2, 0.0))).to(device)
        for _ in range(runs)
    ]
    x = torch.rand(runs, batch, 1, 32, 32, device=device)

    def apart() -> None:
        for network, images in zip(networks, x, strict=True):
            network.zero_grad()
            F.mse_loss(network(images), images).backward()  # type: ignore[no-untyped-call]  # torch's own

    parameters, buffers = stack_module_state(networks)
    base = copy.deepcopy(networks[0]).to("meta")

    def loss(weights: dict[str, Tensor], state: dict[str, Tensor], images: Tensor) -> Tensor:
        return F.mse_loss(functional_call(base, (weights, state), (images,)), images)

    def packed() -> object:
        return vmap(grad(loss))(parameters, buffers, x)

    first = torch.randn(64, 1, 5, 5, device=device, requires_grad=True)
    second = torch.randn(128, 64, 5, 5, device=device, requires_grad=True)
    stacked = [torch.cat([w.detach()] * runs).requires_grad_() for w in (first, second)]
    wide = x.transpose(0, 1).reshape(batch, runs, 32, 32)

    def two_apart() -> None:
        for images in x:
            F.conv2d(
                F.relu(F.conv2d(images, first, None, 2, 2)), second, None, 2, 2
            ).sum().backward()  # type: ignore[no-untyped-call]  # torch's own

    def two_grouped() -> None:
        hidden = F.relu(F.conv2d(wide, stacked[0], None, 2, 2, groups=runs))
        F.conv2d(hidden, stacked[1], None, 2, 2, groups=runs).sum().backward()  # type: ignore[no-untyped-call]  # torch's own

    return {
        "apart": apart,
        "vmap": packed,
        "two layers apart": two_apart,
        "two layers grouped": two_grouped,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=4)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    times: dict[str, list[float]] = {}
    steps = contenders(arguments.runs, arguments.batch, arguments.device)
    for repeat in range(arguments.repeats + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if arguments.device == "cuda":
                torch.cuda.synchronize()
            if repeat:
                times.setdefault(name, []).append(time.perf_counter() - start)
    hardware = provenance()["hardware"]
    print(
        f"{hardware['cpu']}, {torch.get_num_threads()} threads, {arguments.runs} runs, batch {arguments.batch}"
    )
    for name, values in times.items():
        print(f"{name:20} {1000 * statistics.median(values):8.0f} ms")


if __name__ == "__main__":
    main()
