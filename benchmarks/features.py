"""Images a second through the frozen network of method=features, against the bare network in a plain loop.

    python -m benchmarks.features              # at 64 and 112 pixels, 5 rounds of both sides in turns
    python -m benchmarks.features --rounds 3

Plain: timm's network with the extra's weights, in evaluation mode, batches of 64 in inference mode, by all of torch's
threads; images are stretched and normalised in the loop as well. Ours: `compute_features`, which every run, floor and
prediction goes through. Both give the pooled means of the same four stages; they are compared. Neighbours: the score of 1,000
images against 50,000 references of 496 features, and the memory that it takes above the references.
"""

import argparse
import resource
import statistics
import time
from collections.abc import Callable

import timm
import torch
from torch import Tensor
from torch.nn import functional as F

from noveltylab.data.preprocess import Preprocess
from noveltylab.methods.features import Features
from noveltylab.methods.knn import KNN
from noveltylab.nets.backbone import BUNDLED, find_weights, matched
from noveltylab.scoring.kept_features import compute_features

IMAGES, SIDE, BATCH = 512, 32, 64
SIZES = (64, 112)
REFERENCES, QUERIES, WIDTH = 50_000, 1_000, 496


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.features")
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    # first, as the peak of memory is the process's own
    sentence = neighbours()
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (IMAGES, 3, SIDE, SIDE), dtype=torch.uint8, generator=generator)
    print("| network sees | plain loop, images/s | noveltylab, images/s | ratio |")
    print("| --- | ---: | ---: | ---: |")
    for size in SIZES:
        method = Features((3, SIDE, SIDE), input_size=size).eval()
        method.take_pretrained()
        network = plain_network()

        def plain(size: int = size, network: torch.nn.Module = network) -> Tensor:
            return plain_features(network, images, size)

        def ours(method: Features = method) -> Tensor:
            return compute_features(method, Preprocess(), images)

        torch.testing.assert_close(ours(), plain(), rtol=1e-2, atol=1e-3)
        speeds = in_turns(plain, ours, rounds)
        ratio = statistics.median(speeds[1]) / statistics.median(speeds[0])
        middle = [f"{statistics.median(side):.0f}" for side in speeds]
        print(f"| {size} px | {middle[0]} | {middle[1]} | {ratio:.2f} |")
    print(sentence)


def plain_network() -> torch.nn.Module:
    """timm's network with the extra's weights."""
    whole = timm.create_model(BUNDLED)
    whole.load_state_dict(matched(find_weights(BUNDLED, None), whole.state_dict(), BUNDLED))
    network = timm.create_model(BUNDLED, features_only=True, out_indices=(1, 2, 3, 4))
    state = whole.state_dict()
    network.load_state_dict({key: state[key] for key in network.state_dict()})
    network.eval()
    return network


@torch.inference_mode()
def plain_features(network: torch.nn.Module, images: Tensor, size: int) -> Tensor:
    """The pooled features (N, D) of uint8 images (N, C, H, W), batch by batch."""
    parts = []
    for batch in torch.split(images, BATCH):
        x = F.interpolate(batch / 127.5 - 1, (size, size), mode="bilinear")
        parts.append(torch.cat([part.mean((2, 3)) for part in network(x)], 1))
    return torch.cat(parts)


def in_turns(
    first: Callable[[], Tensor], second: Callable[[], Tensor], rounds: int
) -> tuple[list[float], list[float]]:
    """Images a second of both sides, round by round in turns."""
    speeds: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for side, function in zip(speeds, (first, second), strict=True):
            start = time.perf_counter()
            function()
            side.append(IMAGES / (time.perf_counter() - start))
    return speeds


@torch.inference_mode()
def neighbours() -> str:
    """Scores by many references, in batches of 500 as a run has them: a sentence of numbers."""
    generator = torch.Generator().manual_seed(0)
    method = KNN((WIDTH, 1, 1))
    method.prepare(torch.randn(REFERENCES, WIDTH, 1, 1, generator=generator))
    x = torch.randn(QUERIES, WIDTH, 1, 1, generator=generator)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    for batch in torch.split(x, 500):
        method.novelty_score(batch)
    seconds = time.perf_counter() - start
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return (
        f"{QUERIES:,} images against {REFERENCES:,} references: {QUERIES / seconds:.0f} images/s, "
        f"{peak:.0f} MiB above the references"
    )


if __name__ == "__main__":
    main()
