"""Images a second through scoring, against the bare forward pass of the same networks.

    python -m benchmarks.scoring              # the four methods at MNIST's shape, 5 rounds of all sides in turns
    python -m benchmarks.scoring ocgan --rounds 3

Bare: torch's own layers with the same weights, in evaluation and inference mode, the passes that the method's main score needs
and no others, batches of 512 of images that are ready: on the device, scaled, float32. One score: what `predict` does, from
uint8 images on. Every score: what a run does for its scores.csv. Bare and ours have the same scores; they are compared.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import torch
from hydra.utils import get_class
from torch import Tensor

from benchmarks.reference import REFERENCES
from noveltylab.data.preprocess import Preprocess
from noveltylab.methods.base import Method
from noveltylab.scoring.apply import deployed, novelty_scores, score_in_threads

IMAGES, SHAPE, BATCH = 2048, (1, 32, 32), 512
#: Where each method is, and the name of its main score.
METHODS = {
    "ocgan": ("noveltylab.methods.ocgan.OCGAN", "mse"),
    "ca_entropy": ("noveltylab.methods.ca_entropy.CAEntropy", "novelty"),
    "oled": ("noveltylab.methods.oled.OLED", "s_mask"),
    "nda": ("noveltylab.methods.nda.NDA", "mse"),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scoring")
    parser.add_argument("methods", nargs="*", choices=[[], *METHODS], default=[])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    print("| method | bare, images/s | one score | ratio | every score | ratio |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for name in options.methods or METHODS:
        bare, one, every = speeds(name, options.rounds)
        print(
            f"| {name} | {bare:.0f} | {one:.0f} | {one / bare:.2f} | {every:.0f} | {every / bare:.2f} |"
        )


def speeds(name: str, rounds: int) -> tuple[float, float, float]:
    """Images a second of the bare pass, of one score and of every score: medians."""
    path, score = METHODS[name]
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (IMAGES, *SHAPE), dtype=torch.uint8, generator=generator)
    preprocess = Preprocess()
    torch.manual_seed(0)
    method: Method = get_class(path)(SHAPE)
    method.prepare(preprocess(images))
    ready = deployed(method)
    reference = REFERENCES[name](copy.deepcopy(method)).eval()
    x = preprocess(images)

    @torch.inference_mode()
    def bare() -> Tensor:
        return torch.cat([reference.score(batch) for batch in torch.split(x, BATCH)])

    def one() -> Tensor:
        return score_in_threads(ready, preprocess, images, score)[score]

    def every() -> Tensor:
        return torch.from_numpy(novelty_scores(method, preprocess, images, BATCH)[score])

    for ours in (one, every):
        torch.testing.assert_close(ours().float(), bare().float(), rtol=1e-3, atol=1e-4)
    sides = in_turns((bare, one, every), rounds)
    return sides[0], sides[1], sides[2]


def in_turns(functions: tuple[Callable[[], Tensor], ...], rounds: int) -> list[float]:
    """Images a second of each side, the median over rounds in which all take turns."""
    sides: list[list[float]] = [[] for _ in functions]
    for _ in range(rounds):
        for side, function in zip(sides, functions, strict=True):
            start = time.perf_counter()
            function()
            side.append(IMAGES / (time.perf_counter() - start))
    return [statistics.median(side) for side in sides]


if __name__ == "__main__":
    main()
