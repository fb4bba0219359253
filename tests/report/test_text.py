import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from noveltylab.report.blocks import Cell, Document, Grid, GridRow, Heading, Section
from noveltylab.report.text import escape_latex, escape_markdown, one_line, to_markdown

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
