"""Launchers: which one can run the cells of a sweep, and how much of the machine each cell gets."""

import os
import shutil
import socket
from typing import Any, NamedTuple

from hydra.core.plugins import Plugins
from omegaconf import DictConfig, OmegaConf

from noveltylab.errors import UserError
from noveltylab.results.provenance import cores

#: Plugin package -> the extra that installs it.
EXTRAS = {"hydra_ray_launcher": "ray", "hydra_submitit_launcher": "slurm"}

#: Cells per launch where nobody says otherwise: what each returns is kept until the last of a
#: launch is back.
BATCH = 256


def is_launcher(launcher: Any, *names: str) -> bool:
    """Whether the launcher's class has one of the names, since the plugins need not be installed."""
    return type(launcher).__name__ in names


def check_launcher(config: DictConfig) -> None:
    """Refuses a launcher that is not installed, or not usable here."""
    target = str(config.hydra.launcher["_target_"])
    name = config.hydra.runtime.choices["hydra/launcher"]
    if target not in Plugins.instance().class_name_to_class:
        hint = ""
        for package, extra in EXTRAS.items():
            if package in target:
                hint = f"; install it with: pip install 'noveltylab[{extra}]'"
        raise UserError(f"hydra/launcher={name}: this launcher is not installed{hint}")
    if config.trainer.devices > 1 and "submitit" not in name:
        raise UserError(
            f"trainer.devices={config.trainer.devices}: with hydra/launcher={name} each run of a sweep has one device; use "
            "submitit_slurm or submitit_local for runs over several"
        )
    if target.endswith(".SlurmLauncher") and not (shutil.which("sbatch") and shutil.which("srun")):
        raise UserError(
            f"hydra/launcher={name}: no sbatch and srun here; start the sweep where SLURM is, or use ray"
        )


class Room(NamedTuple):
    """What a launcher gives to the cells of a sweep.

    Attributes:
        share: Overrides that tell every cell its share of the machine.
        batch: Cells per launch.
        at_once: Cells that run at a time; None: as many as the cluster starts.
    """

    share: list[str]
    batch: int
    at_once: int | None


def fit_launcher(launcher: Any, config: DictConfig) -> Room:
    """Fills in the launcher's automatic settings; returns what it gives to the cells."""
    cpus = config.resources.num_cpus
    if is_launcher(launcher, "BasicLauncher"):
        return Room([], 1, 1)
    if is_launcher(launcher, "RayLauncher"):
        cpus, at_once = fit_ray(launcher, config.trainer.accelerator == "cpu")
        return Room([f"resources.num_cpus={cpus}"], BATCH, at_once)
    if is_launcher(launcher, "LocalLauncher"):
        cpus = cpus or 1
        at_once = max(1, cores() // cpus)
        if config.resources.num_gpus:
            at_once = 1
        return Room([f"resources.num_cpus={cpus}"], at_once, at_once)
    return Room([], BATCH, None)


def fit_ray(launcher: Any, cpu_only: bool) -> tuple[int, int]:
    """Settles the share of a cell in what Ray has.

    Returns its whole cores, and how many cells run at once.

    Raises:
        UserError: More is asked for than this machine has, which would wait for ever (a cluster may
        yet grow).
    """
    resources = start_ray(launcher)
    gpus = resources.get("GPU", 0.0)
    cpus = resources.get("CPU", 1.0)
    # what the options leave open
    remote = launcher.ray_cfg.remote
    if remote.num_gpus is None:
        remote.num_gpus = 1 if gpus and not cpu_only else 0
    if remote.num_cpus is None:
        remote.num_cpus = 1
        if remote.num_gpus and gpus:
            remote.num_cpus = max(1, int(cpus * remote.num_gpus / gpus))
    # a share that this machine can never give
    shares = (("num_gpus", remote.num_gpus, gpus), ("num_cpus", remote.num_cpus, cpus))
    for name, share, capacity in shares:
        if share > capacity and launcher.ray_cfg.init.address == "local":
            raise UserError(
                f"resources.{name}={share:g}: Ray has {capacity:g} here, so no run would ever start"
            )
    rooms = [int(capacity / share) for _, share, capacity in shares if share]
    return max(1, int(remote.num_cpus)), max(1, min(rooms, default=1))


def start_ray(launcher: Any) -> dict[str, float]:
    """Starts Ray or connects to it, and returns what it has: "CPU", "GPU", ...

    If Ray runs already, its runs end, and go on from their checkpoints later.

    Raises:
        UserError: It does not start, or nothing answers at the address.
    """
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # a run without a GPU must not see one
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")
    settings: dict[str, Any] = OmegaConf.to_container(launcher.ray_cfg.init, resolve=True)  # type: ignore[assignment]  # a mapping
    # does anything answer at the address?
    host, _, port = str(settings["address"]).rpartition(":")
    if host and port.isdigit():
        try:  # Ray itself would knock for minutes
            socket.create_connection((host, int(port)), timeout=10).close()
        except OSError as error:
            raise UserError(
                f"hydra.launcher.ray.init.address={host}:{port}: no Ray answers there: {error}"
            ) from None
    # start or connect
    if ray.is_initialized():
        ray.shutdown()
    try:
        ray.init(**settings)
    except Exception as error:  # Ray raises just that where it is too slow to start
        hint = ""
        if settings["address"] != "local":
            hint = "; a cluster that asks for a token needs RAY_AUTH_MODE=token"
        raise UserError(
            f"hydra/launcher=ray: {error} (settings: hydra.launcher.ray.init{hint})"
        ) from None
    return dict(ray.cluster_resources())  # type: ignore[no-untyped-call]  # untyped in Ray
