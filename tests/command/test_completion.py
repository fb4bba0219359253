"""TAB in a real bash, and every screen into a pipe that nobody reads."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from noveltylab.job import PACKAGE

#: Sets up completion as docs/start.md says, then presses TAB behind each line that it reads.
SCRIPT = """
eval "$(noveltylab -sc install=bash)"
while IFS= read -r COMP_LINE; do
    COMP_POINT=${#COMP_LINE}
    words=($COMP_LINE)
    COMP_CWORD=$(( ${#words[@]} - 1 ))
    case "$COMP_LINE" in *" ") COMP_CWORD=${#words[@]} ;; esac
    COMPREPLY=()
    hydra_bash_completion
    echo "${COMPREPLY[@]}"
done
"""
#: Line -> what is offered, and what is not.
OFFERED = {
    "noveltylab pre": ({"predict"}, set()),
    "noveltylab meth": ({"method=", "method."}, set()),
    "noveltylab method=oc": ({"method=ocgan", "method=ocsvm"}, {"method=pca"}),
    "noveltylab method=nda method.lat": ({"method.latent_lr="}, {"method._target_="}),
    "noveltylab trainer=": ({"trainer=cpu", "trainer=gpu", "trainer=mps", "trainer=ddp"}, set()),
    "noveltylab exp": ({"experiment="}, {"experiment/"}),
    "noveltylab experiment=ocgan/table2_m": ({"experiment=ocgan/table2_mnist"}, set()),
    "noveltylab experiment=learn/mnist row=ca_e": ({"row=ca_entropy", "row=ca_entropy_l2"}, set()),
    "noveltylab method=oled recipe=": ({"recipe=default", "recipe=paper"}, {"recipe=ocgan"}),
    "noveltylab -m method=pca,kn": ({"method=pca,knn"}, {"method=pca,pca"}),
    "noveltylab debug=": ({"debug=fast"}, set()),
    "noveltylab predict run=./ru": ({"run=./run1"}, set()),
}


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """With the console script of this checkout first on the path."""
    script = tmp_path / "bin" / "noveltylab"
    script.parent.mkdir()
    script.write_text(f"#!{sys.executable}\nfrom noveltylab.__main__ import main\nmain()\n")
    script.chmod(0o755)
    path = f"{script.parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PYTHONPATH": str(PACKAGE.parent)}


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_tab_completes_in_bash(tmp_path: Path, environment: dict[str, str]) -> None:
    (tmp_path / "run1").mkdir()
    process = subprocess.run(
        ["bash", "-c", SCRIPT], input="\n".join(OFFERED) + "\n", cwd=tmp_path, env=environment,
        capture_output=True, text=True, timeout=300, check=True,
    )  # fmt: skip
    assert process.stderr == ""
    for (line, (offered, hidden)), reply in zip(
        OFFERED.items(), process.stdout.splitlines(), strict=True
    ):
        words = set(reply.split())
        assert offered <= words and not hidden & words, (line, reply)


@pytest.mark.parametrize(
    "arguments",
    ["--help", "--cfg job", "--info defaults", "--hydra-help", "--version", "report --help"],
)
def test_a_screen_into_a_closed_pipe_ends_without_a_word(tmp_path: Path, arguments: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    process = subprocess.run(
        [sys.executable, "-m", "noveltylab", *arguments.split()], cwd=tmp_path, stdout=writing,
        stderr=subprocess.PIPE, text=True, timeout=100,
    )  # fmt: skip
    os.close(writing)
    assert (process.returncode, process.stderr) == (0, "")
