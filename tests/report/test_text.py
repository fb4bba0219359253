import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from noveltylab.report.blocks import Cell, Document, Grid, GridRow, Heading, Section
from noveltylab.report.collect import collect
from noveltylab.report.published import read_tables
from noveltylab.report.tables import build
from noveltylab.report.text import escape_latex, escape_markdown, one_line, to_latex, to_markdown
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
    assert "<script" not in text and r"\[z\](javascript:1)" in text and r"\*x\*" in text and "a_b" in text


@pytest.mark.parametrize(
    ("plain", "escaped"),
    [
        ("ca_entropy", r"ca\_entropy"),
        ("50 % & $1 #2", r"50 \% \& \$1 \#2"),
        ("{a}^b~c", r"\{a\}\textasciicircum{}b\textasciitilde{}c"),
        (r"\input{x}", r"\textbackslash{}input\{x\}"),
        ("é · 日", r"e $\cdot$ ?"),
    ],
)
def test_latex_escapes(plain: str, escaped: str) -> None:
    assert escape_latex(plain) == escaped


@given(st.text())
def test_latex_holds_nothing_that_is_active(name: str) -> None:
    text = escape_latex(name)
    assert text.isascii() and "\n" not in text
    rest = text
    for known in (r"\textbackslash{}", r"\textasciitilde{}", r"\textasciicircum{}", r"\textless{}", r"\textgreater{}"):
        rest = rest.replace(known, "")
    for known in (r"\textbar{}", r"\textquotedbl{}", r"$\cdot$", "{[}", "{]}", *(f"\\{c}" for c in "{}$&#%_")):
        rest = rest.replace(known, "")
    assert not set(rest) & set('\\{}$&#%_~^<>|"')


def test_latex_tables_have_as_many_cells_as_columns(outputs: Path, write_run: WriteRun) -> None:
    for label in (0, 8):
        for method in ("ocgan", "a_b & c"):
            write_run(method, inlier=label, auroc=0.9)
    document, _ = build(collect(outputs), read_tables(), HOSTILE)
    text = to_latex(document)
    tables = re.findall(r"\\begin\{tabular\}\{([lr]+)\}\n(.*?)\\end\{tabular\}", text, re.S)
    assert len(tables) == text.count(r"\begin{table}") == text.count(r"\end{table}") >= 6
    for layout, body in tables:
        rows = [line for line in body.splitlines() if not re.fullmatch(r"\\(top|mid|bottom)rule", line)]
        assert len(rows) >= 2
        for row in rows:
            assert row.endswith(r" \\")
            assert len(re.findall(r"(?<!\\)&", row)) == len(layout) - 1, row
            assert row.count("{") == row.count("}")


@given(st.text())
def test_one_line_is_one_line(text: str) -> None:
    assert len(one_line(text).splitlines()) <= 1 and one_line(one_line(text)) == one_line(text)


def test_plain_names_stay_readable_in_markdown() -> None:
    assert escape_markdown("s_avg_val (outputs/a-b), 0.95 +0.01 =") == "s_avg_val (outputs/a-b), 0.95 +0.01 ="
