"""Names, paths and folders of strangers, through whole commands: shown as text, read by one schema,
never waited for.
"""

import importlib
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(autouse=True)
def soon() -> Iterator[None]:
    """A test that waits for a pipe ends the whole run instead of hanging it."""
    alarm = threading.Timer(120, os._exit, [70])
    alarm.start()
    yield
    alarm.cancel()


@pytest.mark.parametrize("sweep", [False, True])
def test_markup_in_a_path_is_a_path_also_the_second_time(command: Command, sweep: bool) -> None:
    arguments = ["method=pca", "pictures=false", 'output="x[/x][bold]"', *(["-m"] if sweep else [])]
    first, second = command(*arguments), command(*arguments)
    assert first.returncode == second.returncode == 0, second.stderr
    assert ("complete" if sweep else "complete already: x[/x][bold]/p1") in second.stdout
    assert sweep or "x[/x][bold]/p1" in first.stdout


def test_escapes_in_a_path_reach_neither_terminal_nor_log(command: Command, tmp_path: Path) -> None:
    output = tmp_path / "a\x1b[2J\u202eb"
    process = command("method=pca", "pictures=false", f'output="{output}"')
    assert process.returncode == 0, process.stderr
    again = command("method=pca", "pictures=false", f'output="{output}"')
    (log,) = output.rglob("run.log")
    for text in (process.stdout, process.stderr, again.stdout, log.read_text()):
        assert not {sign for sign in text if not sign.isprintable() and sign != "\n"}
    assert "a\\x1b[2J\\u202eb" in process.stdout and "a\\x1b[2J\\u202eb" in again.stdout


# Files that hang, or fill memory.


def picture(path: Path, kind: str = "PNG") -> Path:
    from PIL import Image

    Image.new("L", (40, 40), 100).save(path, kind)
    return path


def commented(path: Path) -> None:
    path.write_bytes(b"P5\n#" + b"x" * (3 << 20) + b"\n1 1\n255\n\x00")


IMAGES: dict[str, Callable[[Path], object]] = {
    "pipe": lambda path: os.mkfifo(path),
    "endless device": lambda path: path.symlink_to("/dev/zero"),
    "file of the kernel": lambda path: path.symlink_to("/proc/kmsg"),
    "link to nothing": lambda path: path.symlink_to("nothing"),
    "folder": Path.mkdir,
    "huge": lambda path: os.truncate(os.open(path, os.O_CREAT | os.O_WRONLY), 1 << 40),
    "endless comment": commented,
    "pickle": lambda path: path.write_bytes(b"\x80\x04cos\nsystem\n(S'true'\ntR."),
}


@pytest.mark.posix
@pytest.mark.parametrize("kind", IMAGES)
def test_an_odd_image_is_one_line(tmp_path: Path, kind: str) -> None:
    from noveltylab.data.decode import Unreadable, decode, is_colour, thumbnail

    IMAGES[kind](path := tmp_path / "odd.png")
    for read in (lambda: decode(path, 1, 32), lambda: is_colour(path), lambda: thumbnail(path, 32)):
        with pytest.raises(Unreadable) as caught:
            read()
        assert "\n" not in str(caught.value)


def test_threads_that_decode_share_a_bounded_memory() -> None:
    from noveltylab.data.decode import Memory

    memory, most, lock = Memory(100), [0], threading.Lock()
    inside = [0]

    def work(size: int) -> None:
        with memory.hold(size):
            with lock:
                inside[0] += min(size, 100)
                most[0] = max(most[0], inside[0])
            threading.Event().wait(0.002)
            with lock:
                inside[0] -= min(size, 100)

    threads = [threading.Thread(target=work, args=(size,)) for size in (40, 60, 30, 1000, 10) * 8]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most[0] <= 100 and memory.used == 0


def test_large_pictures_wait_for_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from noveltylab.data import decode as module

    path = picture(tmp_path / "a.png")
    memory = module.Memory(40 * 40 * module.BYTES_PER_PIXEL)
    seen: list[int] = []
    pixels = module._pixels

    def watched(*arguments: object) -> object:
        seen.append(memory.used)
        return pixels(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "MEMORY", memory)
    monkeypatch.setattr(module, "_pixels", watched)
    list(module.in_order(lambda path: module.decode(path, 1, 8), [path] * 20, threads=8))
    assert seen == [memory.total] * 20


# Spreadsheets.

FORMULAS = ("=cmd|' /C calc'!A0", "+1", "-1", "@SUM(1)", "\t=1", "\r=1", "'=1", "''-1")
ORDINARY = ("a=1", "'quoted'", "'", "", "test/good/001.png", "1e-3", " =1", "零件")


@pytest.mark.parametrize("text", [*FORMULAS, *ORDINARY])
def test_a_cell_is_no_formula_and_comes_back(text: str) -> None:
    from noveltylab.results.scores import quote, unquote

    assert unquote(quote(text)) == text
    assert not quote(text).startswith(("=", "+", "-", "@", "\t", "\r", "\n"))
    assert (quote(text) == text) == (text in ORDINARY)


def test_ids_that_are_formulas_are_text_in_scores(tmp_path: Path) -> None:
    from noveltylab.results.scores import Scores, read_scores, write_scores

    ids = [*(text for text in FORMULAS if "\r" not in text), *ORDINARY]
    scores = Scores(
        ids, [0] * len(ids), [False] * len(ids), {"mse": [-float(i) for i in range(len(ids))]}
    )  # type: ignore[arg-type]
    write_scores(path := tmp_path / "scores.csv", scores)
    assert read_scores(path).ids == ids
    lines = path.read_text().splitlines()[1:]
    assert not any(line.lstrip('"').startswith(("=", "+", "-", "@", "\t")) for line in lines)
    assert "test/good/001.png,0,0,-11.0" in lines


# Secrets.


@pytest.mark.parametrize(
    "argument",
    [
        "+hydra.job.env_set.WANDB_API_KEY=SECRET",
        "hydra.job.env_set={A: SECRET}",
        "++hydra.job.env_set={WANDB_API_KEY: SECRET,B: SECRET}",
        "logger.api_key=SECRET",
        "+logger.token=SECRET",
        "+x.Password=SECRET",
        "logger={name: wandb, api_key: SECRET}",
        "x={'my_secret':'SECRET'}",
        "data.root=https://me:SECRET@host/x",
    ],
)
def test_secrets_on_the_command_line_are_not_kept(
    monkeypatch: pytest.MonkeyPatch, argument: str
) -> None:
    from noveltylab.results.provenance import provenance

    monkeypatch.setattr("sys.argv", ["noveltylab", "method=pca", argument])
    assert "SECRET" not in provenance()["command"] and "***" in provenance()["command"]
    monkeypatch.setattr("sys.argv", ["noveltylab", "method=pca", "data.root=/a/b", "inlier=3"])
    assert provenance()["command"] == "noveltylab method=pca data.root=/a/b inlier=3"


# Signals.


@pytest.mark.posix
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("module", ["predict", "export", "rerun"])
def test_a_signal_leaves_no_temporary_file(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    module: str,
    number: int,
) -> None:
    from noveltylab.results.files import open_atomic

    def interrupted(*_: object) -> None:
        with open_atomic(tmp_path / "scores.csv") as file:
            file.write(b"half")
            os.kill(os.getpid(), number)
            threading.Event().wait(5)

    places = {"predict": "predict.__main__", "export": "predict.export", "rerun": "run.rerun"}
    command = importlib.import_module(f"noveltylab.{places[module]}")
    monkeypatch.setattr(command, module, interrupted)
    arguments = {
        "predict": [f"run={tmp_path / 'run'}", "input=x.png", f"output={tmp_path / 'x.csv'}"],
        "export": [f"run={tmp_path / 'run'}", "format=torch_export"],
        "rerun": [str(tmp_path / "run")],
    }
    before = signal.getsignal(signal.SIGTERM)
    assert command.main(arguments[module]) == 128 + number
    assert not [*tmp_path.iterdir()]
    assert "interrupted" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is before


# Sound.


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1e38, -1e38], "samples up to 1e"),
        ([1e12], "samples up to"),
        ([float("nan")], "damaged"),
        ([float("inf")], "damaged"),
    ],
)
@pytest.mark.parametrize("features", ["logmel", "waveform"])
def test_samples_that_are_no_sound_are_refused(
    tmp_path: Path, values: list[float], message: str, features: str
) -> None:
    np, soundfile = pytest.importorskip("numpy"), pytest.importorskip("soundfile")
    from noveltylab.data.dcase_sound import read_recording
    from noveltylab.errors import UserError

    wave = np.zeros(44_100 * 2, np.float32)
    wave[::100] = np.resize(np.array(values, np.float32), 882)
    soundfile.write(path := tmp_path / "a.wav", wave, 44_100, subtype="FLOAT")
    with pytest.raises(UserError, match=message):
        read_recording(path, features, (-100.0, 0.0))


def test_loud_samples_are_as_loud_as_can_be(tmp_path: Path) -> None:
    np, soundfile = pytest.importorskip("numpy"), pytest.importorskip("soundfile")
    from noveltylab.data.dcase_sound import read_recording

    noise = np.random.default_rng(0).standard_normal(44_100 * 2).astype(np.float32)
    soundfile.write(path := tmp_path / "a.wav", noise * 1e6, 44_100, subtype="FLOAT")
    assert int(read_recording(path, "logmel", (-100.0, 0.0)).min()) == 255


@pytest.mark.posix
@pytest.mark.parametrize("kind", ["pipe", "link"])
def test_a_log_that_is_no_file_of_the_run_is_not_written(
    command: Command, tmp_path: Path, kind: str
) -> None:
    folder = tmp_path / "outputs" / "p1" / "pca" / "digits" / "inlier8" / "seed0"
    folder.mkdir(parents=True)
    (tmp_path / "victim").write_text("as it was")
    if kind == "pipe":
        os.mkfifo(folder / "run.log")
    else:
        (folder / "run.log").symlink_to(tmp_path / "victim")
    process = command("method=pca", "pictures=false", f"output={tmp_path / 'outputs'}")
    assert (
        process.returncode == 1 and "run.log" in process.stderr and process.stderr.count("\n") == 1
    )
    assert (tmp_path / "victim").read_text() == "as it was"
