"""docs/printed.md names every printed row: with a command that is right, or with a reason."""

import pytest

from experiments.pages import with_tables
from experiments.printed import PAGE, TABLES, absent_table, reason_of, runnable_table
from noveltylab.command.recipes import config_names
from noveltylab.job import CONF
from noveltylab.report.published import read_reasons, read_tables


def test_the_page_is_what_the_command_writes() -> None:
    text = PAGE.read_text()
    assert with_tables(text, TABLES) == text


def test_every_printed_row_has_a_counterpart_or_a_reason() -> None:
    reasons = read_reasons()
    used = set()
    for table in read_tables().values():
        for line in table.rows:
            own = f"{table.ident}: {line.row}"
            if line.row in table.counterparts:
                assert own not in reasons, own
            else:
                assert reason_of(reasons, table, line.row), own
                used.add(own if own in reasons else line.row)
    assert used == reasons.keys()


def test_a_row_without_a_reason_is_an_error() -> None:
    table = read_tables()["ocgan/table2_mnist"]
    with pytest.raises(KeyError):
        reason_of({}, table, "GAN")


def test_methods_that_exist_have_their_rows() -> None:
    """A new method that the papers print is no longer among those that cannot be run."""
    printed = {
        counterpart.method
        for table in read_tables().values()
        for counterpart in table.counterparts.values()
    }
    assert printed <= set(config_names(CONF / "method"))
    assert {"ocsvm", "kde", "ae", "vae", "anogan", "deep_svdd", "alocc", "memae"} <= printed
    assert {"rotnet", "geometric", "lsa", "dsebm", "gpnd", "drocc", "pixelcnn"} <= printed


def test_each_row_stands_once_with_a_command_or_a_reason() -> None:
    for table in (runnable_table, absent_table):
        lines = list(table())
        assert len(lines) == len(set(lines)) > 10
