"""`python -m noveltylab`: composes conf/ with the command line and hands the config to `run`.

Torch is not imported here: `--help`, `--cfg job` and most bad input answer at once.
"""

import os
import re
import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from noveltylab.errors import UserError, nearest

PACKAGE = Path(__file__).resolve().parent
#: conf/ beside the package in a checkout, inside it when installed from a wheel
CONF = next(path for path in (PACKAGE / "conf", PACKAGE.parent / "conf") if path.is_dir())


#: (overrides, reason) of the cells that failed; one process runs all cells of a sweep
failures: list[tuple[str, str]] = []


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="train")
def job(config: DictConfig) -> float | None:
    """One cell: checks the options without torch, then runs it; returns the primary AUROC for Hydra's sweepers.

    Bad input is kept for the end (Hydra would print its own lines), and in a sweep any failure is, so that the others run.
    """
    from noveltylab.options import check_options

    sweeps = HydraConfig.get().mode == RunMode.MULTIRUN
    try:
        options = check_options(config)
        from noveltylab.run import run  # imports torch, which takes seconds: only once the options are known to be good

        result = run(options, OmegaConf.to_container(config, resolve=True))  # type: ignore[arg-type]  # a mapping at the top
    except Exception as error:
        if not (sweeps or isinstance(error, UserError)):
            raise
        reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        failures.append((" ".join(HydraConfig.get().overrides.task), " ".join(reason.split())))
        return None
    return float(result["scores"][result["primary"]]["auroc"])


def main() -> None:
    """Exit codes: 0 done (or already complete), 1 a failure (also of any cell of a sweep), 2 bad input, 130 interrupted."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        from noveltylab.help import print_help

        print_help(CONF, sys.argv[1:])
        return
    # Hydra prints its own long explanations and exits with 1 unless this is set; we say it in one line.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    # OpenMP threads that wait by spinning slow a run a hundredfold where another process wants the same cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        job()
    except HydraException as error:
        _refuse(explain(error))
    except OmegaConfBaseException as error:
        _refuse(f"the configuration: {str(error).splitlines()[0]}")
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        sys.exit(130)
    if failures and not {"-m", "--multirun"} & set(sys.argv[1:]):
        _refuse(failures[0][1])
    if failures:
        print(f"{len(failures)} cells failed; the same command tries them again:", file=sys.stderr)
        for overrides, reason in failures:
            print(f"  {overrides}: {reason}", file=sys.stderr)
        sys.exit(1)


def _refuse(message: str) -> None:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)


def explain(error: HydraException) -> str:
    """Hydra's error in one line, with the nearest right name for a wrong one."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        if error.options:
            return f"{group}={name}: no such choice; {nearest(name, error.options)}"
        return f"no configuration named '{error.missing_cfg_file}' under {CONF}"
    if isinstance(error, OverrideParseException):
        return f"cannot read '{error.override}' on the command line; options are written key=value, e.g. inlier=3"
    if match := re.match(r"Could not override '([^']+)'", str(error)):
        return _unknown_key(match[1])
    return str(error)


def _unknown_key(key: str) -> str:
    """Names the option nearest to a misspelt one, among those of the chosen method, data, ..."""
    from noveltylab.help import compose_choices, flat_keys

    parent, _, name = key.rpartition(".")
    known = flat_keys(compose_choices(CONF, sys.argv[1:]))
    below = f"{parent}." if parent else ""
    siblings = {other.removeprefix(below).split(".")[0] for other in known if other.startswith(below)} - {"_target_"}
    return f"{key}: no such option; {nearest(name, siblings) if siblings else nearest(key, known)}"


if __name__ == "__main__":
    main()
