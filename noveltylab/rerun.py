"""Repeats a finished run from what its folder holds, and says whether it gave the same scores.

    python -m noveltylab.rerun outputs/p1/pca/digits/inlier8/seed0
    python -m noveltylab.rerun <run folder> data.root=/srv/data output=/scratch/again

The new run goes to <output>-rerun; exit code 0: the same scores, 1: others, 2: bad input.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from noveltylab.errors import RunFailed, UserError
from noveltylab.options import check_options
from noveltylab.results import read_result, recorded_config, sha256_file
from noveltylab.scores import read_scores


def rerun(folder: Path, changes: list[str]) -> bool:
    """Runs the configuration in `folder` again, with `changes` such as data.root=...; True if all scores are equal.

    Raises:
        UserError: the folder holds no complete run, its files are not those that its result records, or a bad change.
    """
    from omegaconf import OmegaConf

    result = read_result(folder)
    config = json.loads(json.dumps(recorded_config(result)))  # a copy
    config["output"] = f"{config['output']}-rerun"
    if threads := result["provenance"]["hardware"].get("threads"):  # other thread counts give other last bits
        config.setdefault("resources", {})["num_cpus"] = threads
    composed = OmegaConf.merge(OmegaConf.create(config), OmegaConf.from_dotlist(changes))
    options = check_options(composed)  # type: ignore[arg-type]  # a mapping
    if options.folder.resolve() == folder.resolve():
        raise UserError(f"output={options.output} would write over {folder}; choose another")
    from noveltylab.run import run  # imports torch: only once everything else is known to be good

    run(options, OmegaConf.to_container(composed, resolve=True))  # type: ignore[arg-type]  # a mapping at the top
    return compare(folder, options.folder, result)


def compare(old: Path, new: Path, result: dict[str, Any]) -> bool:
    """Prints how the scores of two runs differ; True if they do not."""
    console = Console(highlight=False, soft_wrap=True)
    if sha256_file(new / "scores.csv") == result["files"]["scores.csv"]:
        console.print(f"[bold]the same scores[/], byte for byte: {new}")
        return True
    here = read_result(new)
    if not (old / "scores.csv").is_file():  # as in experiments/results, which keeps its checksum alone
        for name, metrics in here["scores"].items():
            there = result["scores"].get(name)
            if metrics and there:
                console.print(f"{name}: AUROC {there['auroc']:.6f} there, {metrics['auroc']:.6f} here")
        return _not_the_same(console, result, here, new)
    first, second = (read_scores(folder / "scores.csv") for folder in (old, new))
    if first.ids != second.ids or first.columns.keys() != second.columns.keys():
        console.print(f"[bold red]other test samples or scores[/]: compare {old} and {new}")
        return False
    for name, column in first.columns.items():
        gap = float(np.abs(column - second.columns[name]).max())
        console.print(f"{name}: scores differ by up to {gap:.3g} (their standard deviation is {column.std():.3g})")
    return _not_the_same(console, result, here, new)


def _not_the_same(console: Console, old: dict[str, Any], new: dict[str, Any], folder: Path) -> bool:
    there, here = old["provenance"], new["provenance"]
    changed = [key for key in ("versions", "hardware", "commit") if there.get(key) != here.get(key)]
    console.print(f"[bold red]not the same scores[/]: {folder}" + (f"; other {', '.join(changed)}" if changed else ""))
    return False


def main(arguments: list[str]) -> int:
    if not arguments or {"-h", "--help"} & set(arguments):
        print(__doc__)
        return 0 if arguments else 2
    try:
        if wrong := [change for change in arguments[1:] if "=" not in change]:
            raise UserError(f"cannot read '{wrong[0]}'; changes are written key=value, e.g. data.root=/srv/data")
        return 0 if rerun(Path(arguments[0]), arguments[1:]) else 1
    except (UserError, RunFailed) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
