import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from noveltylab.command.signals import SIGNALS
from noveltylab.report.__main__ import main
from tests.report.conftest import CLASSES, WriteRun, flat_metrics, result_of, run_folder


def run_report(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """In a process of its own, which says at its end whether torch was imported."""
    code = (
        "import sys; from noveltylab.report.__main__ import main; main(sys.argv[1:]); "
        "print([name for name in ('torch', 'lightning', 'matplotlib', 'hydra') if name in sys.modules])"
    )
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=cwd, env=environment, timeout=300
    )


def refusal(arguments: Sequence[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    output = capsys.readouterr()
    assert output.out == "" and output.err.startswith("error: ") and output.err.count("\n") == 1
    return output.err


def test_writes_four_files_without_torch(outputs: Path, write_run: WriteRun) -> None:
    for label in range(8):
        write_run("ocgan", inlier=label, auroc=0.9)
        write_run("oled", inlier=label, auroc=0.8 + label / 100)
    process = run_report(outputs)
    assert process.returncode == 0 and process.stderr == ""
    assert process.stdout.splitlines()[-1] == "[]"
    written = sorted(path.name for path in (outputs / "report").iterdir())
    assert written == [
        "report.csv",
        "report.html",
        "report.md",
        "report.tex",
        "side_by_side",
        "tex",
    ]
    for name in written[:-2]:
        assert str(outputs / "report" / name) in process.stdout
        # nothing says where it was made
        assert str(outputs) not in (outputs / "report" / name).read_text()


def test_the_default_folder_is_outputs(outputs: Path, write_run: WriteRun) -> None:
    write_run(auroc=0.9)
    process = run_report(cwd=outputs.parent)
    assert process.returncode == 0 and (outputs / "report" / "report.html").is_file()


def test_a_second_report_is_the_same(outputs: Path, write_run: WriteRun) -> None:
    write_run()
    main([str(outputs)])
    first = {path: path.read_bytes() for path in (outputs / "report").rglob("*.*")}
    main([str(outputs)])
    assert {path: path.read_bytes() for path in (outputs / "report").rglob("*.*")} == first


def test_markdown_of_one_table_alone(
    outputs: Path, write_run: WriteRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(auroc=0.9)
    write_run(data="cifar10", auroc=0.6)
    file = tmp_path / "experiments" / "RESULTS.md"
    main([str(outputs), "--table", "ocgan/table2_mnist", "--markdown", str(file)])
    text = file.read_text()
    assert "### ocgan/table2\\_mnist" in text or "### ocgan/table2_mnist" in text
    assert "cifar10" not in text.replace("CIFAR-10", "") and "**ours: ocgan, mse**" in text
    assert not (outputs / "report").exists()
    assert str(file) in "".join(capsys.readouterr().out.split())


def test_a_papers_tables_at_once(outputs: Path, write_run: WriteRun, tmp_path: Path) -> None:
    write_run(auroc=0.9)
    main([str(outputs), "--table", "oled", "--output", str(tmp_path / "there")])
    text = (tmp_path / "there" / "report.md").read_text()
    assert text.count("### oled/table") == 5 and text.count("Not run:") == 5


def test_damaged_and_unfinished_runs_are_named(
    outputs: Path, write_run: WriteRun, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(auroc=0.9)
    (write_run(seed=1, auroc=0.9) / "result.json").write_text("{")
    folder = write_run(seed=2, auroc=0.9)
    (folder / "result.json").unlink()
    (folder / "run.log").write_text(
        "10:00 Traceback (most recent call last):\n10:00 \x1b[31mValueError: <b>no</b>\n"
    )
    main([str(outputs)])
    output = capsys.readouterr().out
    assert "damaged 1" in output and "unfinished 1" in output and "\x1b" not in output
    text = (outputs / "report" / "report.md").read_text()
    assert "1 runs, 1 unfinished, 1 damaged." in text
    assert (
        "inlier0/seed1: " in text
        and "failed: 10:00 \\[31mValueError: &lt;b&gt;no&lt;/b&gt;" in text
    )


def test_names_that_are_no_text_are_reported(outputs: Path, write_run: WriteRun) -> None:
    write_run(auroc=0.9)
    folder = os.fsencode(outputs) + b"/p2/\xff\xfe/mnist/inlier0/seed0"
    os.makedirs(folder)
    with open(folder + b"/config.yaml", "wb"):
        pass
    process = run_report(outputs)
    assert process.returncode == 0 and "unfinished 1" in process.stdout
    (
        outputs
        / "p2"
        / "ocgan"
        / "mnist"
        / "inlier0"
        / "seed0"
        / "figures"
        / os.fsdecode(b"\xff.png")
    ).touch()
    assert run_report(outputs).returncode == 0
    assert "figures/%FF.png" in (outputs / "report" / "report.html").read_text()


def test_a_folder_of_damaged_runs_alone_is_reported(outputs: Path, write_run: WriteRun) -> None:
    (write_run(auroc=0.9) / "result.json").write_text("{")
    main([str(outputs)])
    assert "0 runs, 0 unfinished, 1 damaged." in (outputs / "report" / "report.html").read_text()


def test_refuses_bad_input(
    outputs: Path, write_run: WriteRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "no such folder" in refusal([str(outputs)], capsys)
    outputs.mkdir()
    assert "holds no runs" in refusal([str(outputs)], capsys)
    write_run(auroc=0.9)
    error = refusal([str(outputs), "--table", "ocgan/table2_mnst"], capsys)
    assert "did you mean 'ocgan/table2_mnist'" in error
    (tmp_path / "file").write_text("")
    assert "cannot be written" in refusal(
        [str(outputs), "--output", str(tmp_path / "file")], capsys
    )
    assert not (outputs / "report").exists()


@pytest.mark.posix
@pytest.mark.parametrize("number", sorted(set(SIGNALS) - {signal.SIGINT}))
def test_a_signal_ends_it_by_its_exit_code(
    write_run: WriteRun, outputs: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    write_run(auroc=0.9)
    monkeypatch.setattr("noveltylab.report.__main__.build", lambda *_: signal.raise_signal(number))
    monkeypatch.setattr("noveltylab.command.signals.leave_terminal", lambda: None)
    with pytest.raises(SystemExit) as stop:
        main([str(outputs)])
    assert stop.value.code == 128 + number
    assert not (outputs / "report").exists()


@pytest.mark.slow
def test_two_thousand_runs_in_under_ten_seconds(outputs: Path) -> None:
    """20 rows of 10 classes and 10 seeds: 5 methods, 2 protocols, 2 data; processor time, so that
    others do not count.
    """
    rng = np.random.default_rng(0)
    curve = "iteration,name,value\n" + "".join(
        f"{16 * i},train/{name},{1 / i}\n"
        for i in range(1, 25)
        for name in ("mse", "a", "b", "c", "d", "e")
    )
    count = 0
    for protocol in ("p1", "p2"):
        for data in ("mnist", "cifar10"):
            for method in ("ocgan", "ca_entropy", "oled", "nda", "vae"):
                for inlier in range(len(CLASSES[data])):
                    for seed in range(10):
                        folder = run_folder(outputs, protocol, method, data, inlier, seed)
                        (folder / "figures").mkdir(parents=True)
                        for name in ("roc", "scores", "cases"):
                            (folder / "figures" / f"{name}.png").touch()
                        scores = {
                            name: flat_metrics(float(rng.uniform(0.6, 0.9)))
                            for name in ("mse", "a", "b", "c")
                        }
                        floor = {
                            name: flat_metrics(float(rng.uniform(0.6, 0.9)))
                            for name in ("pca", "knn")
                        }
                        result = result_of(method, data, protocol, inlier, seed, scores, floor)
                        (folder / "result.json").write_text(json.dumps(result, indent=1))
                        (folder / "metrics.csv").write_text(curve)
                        count += 1
    assert count == 2000
    before = os.times()
    start = time.monotonic()
    process = run_report(outputs)
    after = os.times()
    used = (
        after.children_user + after.children_system - before.children_user - before.children_system
    )
    assert process.returncode == 0 and process.stdout.splitlines()[-1] == "[]"
    print(f"2,000 runs: {used:.1f} s of one core, {time.monotonic() - start:.1f} s on the clock")
    assert used < 10
