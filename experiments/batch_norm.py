"""One training, two kinds of batch-norm statistics: AUROC with those of training and with those of clean inliers.

python -m experiments.batch_norm outputs/p2/ocgan/mnist/inlier8/seed0   # of runs with trainer.batch_norm=anew select=last
"""

import sys
from pathlib import Path

import torch

from noveltylab.command.screen import say
from noveltylab.errors import UserError
from noveltylab.options import read_options
from noveltylab.results.files import open_regular
from noveltylab.results.record import read_result
from noveltylab.run.build import build
from noveltylab.run.read import read_and_split
from noveltylab.scoring.apply import novelty_scores
from noveltylab.scoring.metrics import evaluate


def compare(folder: Path) -> tuple[float, float]:
    """AUROC of the last weights with running statistics, and with those taken anew, as the run has
    it.
    """
    result = read_result(folder)
    options = read_options(result["config"])
    if options.trainer.batch_norm != "anew" or result["selected"]["rule"] != "last":
        raise UserError(f"{folder}: compares runs with trainer.batch_norm=anew select=last")
    data, method = build(options, *read_and_split(options))
    with open_regular(folder / "checkpoints" / "last.ckpt") as file:
        content = torch.load(file, map_location="cpu", weights_only=True)
    # under an average the checkpoint holds it in the place of the weights
    method.load_state_dict(content["state_dict"])
    scores = novelty_scores(
        method, data.preprocess, data.test, options.trainer.score_batch_size, data.val
    )
    running = evaluate(scores[result["primary"]], data.test_is_outlier)
    return running["auroc"], result["scores"][result["primary"]]["auroc"]


def main(folders: list[str]) -> int:
    """Exit code: 0, or 2 for bad input."""
    try:
        for folder in map(Path, folders):
            running, anew = compare(folder)
            say(f"{folder}: running {running:.4f}, anew {anew:.4f}, gain {anew - running:+.4f}")
    except UserError as error:
        say(f"error: {error}")
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
