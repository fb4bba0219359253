"""Kills runs with SIGKILL at random moments and repeats them: they must end as if nothing had happened.

    python -m tests.chaos 200 [folder]        # `make chaos`; tests/test_chaos.py does a few

Half the kills fall at a random time, half at a random file operation: before a file is flushed, before it gets its name,
just after. Each process is forked from one that has imported everything, so that a run takes a second or two.
"""

import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # a process that started threads cannot be forked

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from noveltylab.command.hydra_versions import BASE
from noveltylab.job import CONF
from noveltylab.options import check_options
from noveltylab.run.pipeline import run
from tests.methods.conftest import ITERATIVE, SMALL

TINY = (
    "data=digits",
    "data.limit_train=64",
    "data.batch_size=16",
    "trainer.max_epochs=3",
    "trainer.val_every=1",
    "trainer.accelerator=cpu",
    "trainer.checkpoint_seconds=0",
)
#: what a run leaves that must be the same bytes
SAME = ("scores.csv", "metrics.csv", "split.npz", "config.yaml")
OPERATIONS = ("fsync", "replace")


def overrides(method: str, output: Path, pictures: bool) -> list[str]:
    small = [f"method.{key}={str(value).lower()}" for key, value in SMALL.get(method, {}).items()]
    return [
        f"method={method}",
        f"output={output}",
        f"pictures={str(pictures).lower()}",
        *TINY,
        *small,
    ]


def child(method: str, output: Path, pictures: bool, kill: Callable[[], None] | None) -> int:
    """Forks a process that does one run; returns its id."""
    if pid := os.fork():
        return pid
    code = 1
    try:
        log = os.open(output.with_suffix(".log"), os.O_CREAT | os.O_APPEND | os.O_WRONLY)
        os.dup2(log, 1)
        os.dup2(log, 2)
        if kill:
            kill()
        with initialize_config_dir(str(CONF), **BASE):
            config = compose("train", overrides(method, output, pictures))
        run(check_options(config), OmegaConf.to_container(config, resolve=True))  # type: ignore[arg-type]  # a mapping
        code = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def kill_at(count: int, after: bool) -> Callable[[], None]:
    """Ends the process at its count-th file operation that matters, before or after it is done."""

    def arm() -> None:
        seen = 0

        def wrap(operation: Callable[..., Any]) -> Callable[..., Any]:
            def wrapped(*arguments: Any, **options: Any) -> Any:
                nonlocal seen
                seen += 1
                if seen == count and not after:
                    os.kill(os.getpid(), signal.SIGKILL)
                result = operation(*arguments, **options)
                if seen == count:
                    os.kill(os.getpid(), signal.SIGKILL)
                return result

            return wrapped

        for name in OPERATIONS:
            setattr(os, name, wrap(getattr(os, name)))

    return arm


def count_operations(path: Path) -> Callable[[], None]:
    def arm() -> None:
        def wrap(operation: Callable[..., Any]) -> Callable[..., Any]:
            def wrapped(*arguments: Any, **options: Any) -> Any:
                with open(path, "a") as file:
                    file.write("x")
                return operation(*arguments, **options)

            return wrapped

        for name in OPERATIONS:
            setattr(os, name, wrap(getattr(os, name)))

    return arm


def finish(pid: int) -> int:
    """The exit code, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def outcome(output: Path) -> dict[str, Any]:
    """What must not depend on being killed."""
    (folder,) = (path.parent for path in output.rglob("result.json"))
    result = json.loads((folder / "result.json").read_text())
    assert not list(folder.rglob("*.tmp")), "temporary files are left"
    files = {name: (folder / name).read_bytes() for name in SAME if (folder / name).exists()}
    # the config names its output folder, which differs between the runs compared
    files["config.yaml"] = files["config.yaml"].replace(str(output).encode(), b"OUTPUT")
    return {
        "files": files,
        **{key: result[key] for key in ("scores", "selected", "floor", "split_sha256")},
    }


def chaos(points: int, folder: Path, seed: int) -> list[str]:
    """The kill points that did not end as they should, [] if all did."""
    rng = random.Random(seed)
    methods = ITERATIVE
    rng.shuffle(methods)
    bad: list[str] = []
    references: dict[tuple[str, bool], tuple[dict[str, Any], float, int]] = {}
    for point in range(points):
        method = methods[point % len(methods)]
        pictures = point // len(methods) % 4 == 3  # drawing is most of such a run's time
        if (method, pictures) not in references:
            whole, counter = (
                folder / f"{method}-whole-{pictures}",
                folder / f"{method}-operations-{pictures}",
            )
            start = time.monotonic()
            code = finish(child(method, whole, pictures, count_operations(counter)))
            assert code == 0, f"{method} ended with {code}: {whole.with_suffix('.log').read_text()}"
            references[method, pictures] = (
                outcome(whole),
                time.monotonic() - start,
                len(counter.read_text()),
            )
        expected, seconds, operations = references[method, pictures]
        output = folder / f"{method}-{point}"
        kills = []
        for _ in range(rng.choice((1, 1, 2))):
            if rng.random() < 0.5:
                moment = rng.uniform(0.1, 1.0) * seconds
                pid = child(method, output, pictures, None)
                time.sleep(moment)
                os.kill(pid, signal.SIGKILL)
                kills.append(f"after {moment:.2f} s")
            else:
                position, after = rng.randint(1, operations), rng.random() < 0.5
                pid = child(method, output, pictures, kill_at(position, after))
                kills.append(
                    f"{'after' if after else 'before'} file operation {position} of {operations}"
                )
            kills[-1] += f" (ended with {finish(pid)})"
        code = finish(child(method, output, pictures, None))
        attempt = f"{method}, killed {' and '.join(kills)}"
        fault = output.with_suffix(".log").read_text()[-2000:] if code else ""
        if not code:
            actual = outcome(output)
            parts = {**actual, **actual.pop("files")}
            reference = {**expected, **expected["files"]}
            fault = ", ".join(key for key, value in parts.items() if reference[key] != value)
        print(f"{attempt}: {'differs: ' + fault if fault else 'the same'}", flush=True)
        if fault:
            bad.append(attempt)
        shutil.rmtree(output, ignore_errors=True)
    return bad


def main(points: str = "20", folder: str = "", seed: str = "") -> int:
    number = int(seed or time.time())
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
    print(f"seed {number}")
    with tempfile.TemporaryDirectory() as temporary:
        os.environ["NOVELTYLAB_CACHE"] = f"{temporary}/cache"
        bad = chaos(int(points), Path(folder or temporary), number)
    print(f"{len(bad)} of {points} kill points went wrong")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
