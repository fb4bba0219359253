"""Does speed cost accuracy? The reference and noveltylab trained from the same initial weights, their AUROC side by side.

    NOVELTYLAB_DATA=/srv/data python -m benchmarks.auroc ocgan ca_entropy --images 2560 --epochs 8 --seeds 0 1 2

MNIST, official split, 1,000 test images. Noise and the order of the images differ between the sides (one draws them in the
loader), as they do between two seeds: the spread over seeds is the measure of what a difference means.
"""

import argparse
import logging
import statistics
import time
import warnings

import numpy as np
import torch
from hydra import compose, initialize_config_dir

from benchmarks.reference import REFERENCES, bare_loop, loader, score_all
from benchmarks.suite import WHOLE
from noveltylab.command.hydra_versions import BASE
from noveltylab.job import CONF
from noveltylab.methods.base import Batch
from noveltylab.options import check_options
from noveltylab.run.build import build
from noveltylab.run.read import read_and_split
from noveltylab.scoring.apply import novelty_scores
from noveltylab.scoring.metrics import evaluate

SIDES = ("bare 32", "lab 32", "lab bf16")


def auroc(side: str, name: str, seed: int, arguments: argparse.Namespace) -> float:
    """Of the method's primary score after training."""
    overrides = [
        f"method={name}",
        "data=mnist",
        f"inlier={arguments.inlier}",
        f"seed={seed}",
        "data.size=32",
    ]
    overrides += [
        "data.batch_size=64",
        f"data.limit_train={arguments.images}",
        *WHOLE[name],
        *arguments.options,
    ]
    with initialize_config_dir(str(CONF), **BASE):
        options = check_options(compose("train", overrides))
    data, method = build(options, *read_and_split(options))
    method.prepare(data.preprocess(data.train))
    pick = np.random.default_rng(0).permutation(len(data.test))[:1000]
    test, outlier = data.test[pick], data.test_is_outlier[pick]
    torch.manual_seed(seed)
    if side == "bare 32":
        reference = REFERENCES[name](method)
        bare_loop(
            reference,
            loader(data.train, 32, 64, method, "cpu"),
            arguments.epochs,
            "cpu",
            False,
            lambda: None,
        )
        scores = np.array(
            score_all(reference, loader(test, 32, 64, None, "cpu", ordered=True), "cpu")
        )
    else:
        method.to(memory_format=torch.channels_last).train()
        batches = data.train_dataloader()
        for epoch in range(arguments.epochs):
            method.progress = epoch / arguments.epochs
            batches.sampler.set_epoch(epoch)  # type: ignore[attr-defined]  # our sampler
            for positions in batches:
                for x, rows in zip(*data.gather(positions.view(-1, 64)), strict=True):
                    with torch.autocast("cpu", torch.bfloat16, enabled=side == "lab bf16"):
                        method.update(Batch(x.contiguous(memory_format=torch.channels_last), rows))
        scores = novelty_scores(method, data.preprocess, test, 512)[options.method["primary"]]
    return float(evaluate(scores, outlier)["auroc"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("methods", nargs="+", choices=[*REFERENCES])
    parser.add_argument("--images", type=int, default=2560)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--inlier", type=int, default=3)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument(
        "--sides", nargs="+", default=SIDES, choices=SIDES, help="bf16 pays where a CPU has it"
    )
    parser.add_argument("--options", nargs="*", default=[], help="further options of the runs")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")  # so that the lines of results stand alone
    logging.getLogger("noveltylab").setLevel(logging.WARNING)
    for name in arguments.methods:
        aurocs: dict[str, list[float]] = {side: [] for side in arguments.sides}
        # side by side, so that what stands here when it is interrupted can be compared
        for seed in arguments.seeds:
            for side in arguments.sides:
                start = time.perf_counter()
                aurocs[side].append(auroc(side, name, seed, arguments))
                seconds = time.perf_counter() - start
                print(
                    f"{name:10} seed {seed} {side:8} {aurocs[side][-1]:.4f}  {seconds:.0f} s",
                    flush=True,
                )
        first = aurocs[arguments.sides[0]]
        for side, values in aurocs.items():
            differences = [
                value - reference for value, reference in zip(values, first, strict=True)
            ]
            spread = statistics.stdev(differences) if len(differences) > 1 else float("nan")
            print(
                f"{name:10} {side:8} mean {statistics.mean(values):.4f}, minus {arguments.sides[0]} "
                f"{statistics.mean(differences):+.4f} (deviation over seeds {spread:.4f})",
                flush=True,
            )


if __name__ == "__main__":
    main()
