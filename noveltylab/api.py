"""Runs from Python: `compose` checks options, `train` runs them. Nothing of a run stays in the process.

from noveltylab import compose, load_detector, train
options = compose("method=pca", "data=digits", "trainer.accelerator=cpu")
result = train(options)
print(result["scores"][result["primary"]]["auroc"])
detector = load_detector(result["folder"])
"""

from typing import Any

from noveltylab.configs import compose_config
from noveltylab.errors import UserError
from noveltylab.options import Options, check_options
from noveltylab.run.process import restored, same_random


def compose(*arguments: str) -> Options:
    """The checked options of one run, with every default and recipe filled in.

    Args:
        arguments: What the command takes, one text each: `"method=pca"`, `"inlier=3"`,
            `"trainer.max_epochs=10"`. Of an experiment those that leave one of its runs:
            `"experiment=ocgan/table4_mnist"`, `"row=ocgan_full"`, `"inlier=3"`, `"seed=0"`.

    Returns:
        Options that cannot be changed; compose again for others. `options.folder` is where the run
            will lie.

    Raises:
        UserError: An option that the command would refuse, in the same words; or several runs.
            What only the method's own code knows, `train` refuses.
    """
    with same_random():
        return check_options(compose_config(list(arguments)))


def train(options: Options) -> dict[str, Any]:
    """Trains, scores and measures one run as the command does; prints and writes the same.

    A finished run is not run again, and an interrupted one goes on from its last checkpoint. What
    a run sets in its process is as before afterwards: random states, threads, torch's switches,
    signal handlers, the environment, logging and warnings.

    Args:
        options: From `compose`.

    Returns:
        What result.json holds, and `folder`, the full path of the run, which `load_detector` takes.

    Raises:
        UserError: Bad input, before anything is created; or another process runs this very run.
        RunFailed: A full disk or too little memory; the same call goes on when that is mended.
        KeyboardInterrupt: After the last checkpoint was written, if it was interrupted.
    """
    if options.trainer.devices > 1:
        raise UserError(
            f"trainer.devices={options.trainer.devices}: from Python a run has one device; "
            "the command trains on several"
        )
    config = options.model_dump(exclude_unset=True)
    with restored():
        from noveltylab.run.pipeline import run  # torch, which takes seconds: only now

        result = run(options, config)
    return {**result, "folder": str(options.folder.resolve())}
