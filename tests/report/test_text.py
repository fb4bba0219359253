"""Text escaped for Markdown and LaTeX; LaTeX tables, compiled where there is a LaTeX."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from noveltylab.report.__main__ import main
from noveltylab.report.blocks import Cell, Document, Grid, GridRow, Heading, Section
from noveltylab.report.collect import collect
from noveltylab.report.latex import ROWS
from noveltylab.report.published import read_tables
from noveltylab.report.tables import latex_tables
from noveltylab.report.text import escape_latex, escape_markdown, one_line, to_markdown
from tests.report.conftest import WriteRun

HOSTILE = "<script>alert(1)</script> | a_b *x* `y` [z](javascript:1) $q$ #1 & 50% {w} \\end{tabular} ~^\nnew | row"


def with_name(name: str) -> Document:
    grid = Grid(name, (name, "n"), (GridRow((Cell(name), Cell("0.5", 0.5)), "ours"),))
    return Document(name, [name], [Section(name, [Heading(name), grid])], [])


@given(st.text())
def test_a_markdown_row_stays_one_row(name: str) -> None:
    lines = to_markdown(with_name(name)).splitlines()
    table = [line for line in lines if line.startswith("| ") and not line.startswith("| ---")]
    assert len(table) == 2
    for line in table:
        assert len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) == 3
        assert not re.search(r"(?<!\\)[<>`]", line)


def test_markdown_of_hostile_names() -> None:
    text = to_markdown(with_name(HOSTILE))
    assert (
        "<script" not in text
        and r"\[z\](javascript:1)" in text
        and r"\*x\*" in text
        and "a_b" in text
    )


@pytest.mark.parametrize(
    ("plain", "escaped"),
    [
        ("ca_entropy", r"ca\_entropy"),
        ("50 % & $1 #2", r"50 \% \& \$1 \#2"),
        ("{a}^b~c", r"\{a\}\textasciicircum{}b\textasciitilde{}c"),
        (r"\input{x}", r"\textbackslash{}input\{x\}"),
        ("é · ü ß 日", r"\'{e} $\cdot$ \"{u} \ss{} {[}U+65E5{]}"),
        ("螺丝 ½", "{[}U+87BA{]}{[}U+4E1D{]} {[}U+00BD{]}"),
        ("½²", "{[}U+00BD{]}2"),
    ],
)
def test_latex_escapes(plain: str, escaped: str) -> None:
    assert escape_latex(plain) == escaped


@given(st.text())
def test_latex_holds_nothing_that_is_active(name: str) -> None:
    text = escape_latex(name)
    assert (
        text.isascii()
        and "\n" not in text
        and text.count("{") - text.count(r"\{") == text.count("}") - text.count(r"\}")
    )
    remainder = re.sub(
        r"\\text\w+\{\}|\\[{}$&#%_]|\$\\(cdot|times|pm)\$|\$\^\{\\dagger\}\$", "", text
    )
    remainder = re.sub(r"\\([`'^~=.\"]|[urHvc](?=\{))|\\(ss|ae|AE|o|O|l|L|oe|i)\{\}", "", remainder)
    assert not set(remainder) & set('\\$&#%_~^<>|"')


@given(st.text())
def test_one_line_is_one_line(text: str) -> None:
    assert len(one_line(text).splitlines()) <= 1 and one_line(one_line(text)) == one_line(text)


def test_plain_names_stay_readable_in_markdown() -> None:
    assert (
        escape_markdown("s_avg_val (outputs/a-b), 0.95 +0.01 =")
        == "s_avg_val (outputs/a-b), 0.95 +0.01 ="
    )


HOSTILE_NAME = "a_b & 50% #1 ~ ^ $x$ {w} \\end{tabular} ü 螺丝"


def shortened(result: dict[str, Any]) -> None:
    result["config"]["data"]["limit_train"] = 50


@pytest.fixture
def table_outputs(outputs: Path, write_run: WriteRun) -> Path:
    """Whole and shortened runs, two seeds, hostile names, more rows than a page holds."""
    for label in range(10):
        for seed in (0, 1):
            write_run(
                "ocgan", inlier=label, seed=seed, auroc={"mse": 0.9 + seed / 100, "dv_x": 0.6}
            )
            write_run("oled", inlier=label, seed=seed, auroc=0.8)
        write_run("nda", inlier=label, auroc=0.99, change=shortened)
        write_run("a method of some length & more_of it", inlier=label, auroc=0.7)
    for number in range(ROWS):
        write_run(f"variant{number}", "cifar10", auroc=0.5)

    def rename(result: dict[str, Any]) -> None:
        result["inlier_name"] = result["primary"] = result["config"]["method"]["primary"] = (
            HOSTILE_NAME
        )
        result["scores"] = {HOSTILE_NAME: result["scores"]["mse"]}
        result["provenance"]["commit"] = HOSTILE_NAME

    write_run("ae", auroc=0.5, change=rename)
    return outputs


def tables(outputs: Path, *idents: str) -> dict[str, str]:
    return latex_tables(collect(outputs), read_tables(), idents)


def test_each_table_is_whole(table_outputs: Path) -> None:
    files = tables(table_outputs)
    labels = [label for text in files.values() for label in re.findall(r"\\label\{(.*?)\}", text)]
    captions = [
        caption for text in files.values() for caption in re.findall(r"\\caption\{(.*)\}", text)
    ]
    assert len(labels) == len(set(labels)) == len(files) == len(set(captions)) == len(captions)
    for name, text in files.items():
        assert text.isascii(), name
        for kind in ("table", "tabular"):
            assert text.count(f"\\begin{{{kind}}}") == text.count(f"\\end{{{kind}}}") == 1
        ((layout, body),) = re.findall(
            r"\\begin\{tabular\}\{@\{\}([lr]+)@\{\}\}\n(.*?)\\end\{tabular\}", text, re.S
        )
        rows = [
            line for line in body.splitlines() if not re.fullmatch(r"\\(top|mid|bottom)rule", line)
        ]
        assert 2 <= len(rows) <= ROWS + 1
        for row in rows:
            assert row.endswith(r" \\") and row.count("{") == row.count("}")
            assert len(re.findall(r"(?<!\\)&", row)) == len(layout) - 1, row


def test_the_best_whole_run_is_bold_with_its_deviation(table_outputs: Path) -> None:
    text = tables(table_outputs, "ocgan/table2_mnist")["ocgan_table2_mnist"]
    (ocgan,) = [line for line in text.splitlines() if line.startswith("ocgan &")]
    assert ocgan.endswith(r"& \textbf{0.905} $\pm$ 0.007 \\")
    (trial,) = [line for line in text.splitlines() if line.startswith(r"nda$^{\dagger}$ &")]
    assert "0.990" in trial and "textbf" not in trial
    assert (
        r"$^{\dagger}$Shortened runs, not compared with whole ones (nda$^{\dagger}$: the first 50"
        in text
    )
    assert r"a method of some length \& more\_of it &" in text


def test_what_differs_is_under_the_table(table_outputs: Path) -> None:
    text = tables(table_outputs)["p2_mnist"]
    assert "Rows differ: " in text and r"commit a\_b \& 50\% (ae)" in text


def test_rows_that_fill_more_than_a_page_go_on(table_outputs: Path) -> None:
    files = tables(table_outputs, "ocgan/table3_cifar10")
    assert (
        "ocgan_table3_cifar10_1" in files
        and "Continued (2 of 2)" in files["ocgan_table3_cifar10_2"]
    )


def test_it_compiles_and_nothing_runs_off_the_page(table_outputs: Path) -> None:
    if shutil.which("pdflatex") is None:
        pytest.skip("no pdflatex here (Debian: texlive-latex-base, texlive-latex-recommended)")
    main([str(table_outputs)])
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "report.tex"]
    process = subprocess.run(
        command,
        cwd=table_outputs / "report",
        capture_output=True,
        text=True,
        errors="replace",
        timeout=120,
    )
    log = (table_outputs / "report" / "report.log").read_text(errors="replace")
    assert process.returncode == 0, log[-2000:]
    assert not re.findall(r"Overfull.*|Float too large.*|multiply defined.*", log)
    assert (table_outputs / "report" / "report.pdf").is_file()
