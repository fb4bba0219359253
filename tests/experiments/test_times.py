"""docs/speed.md says what the kept runs took."""

from experiments.pages import with_tables
from experiments.times import PAGE, PLANS, TABLES, times_table


def test_the_page_is_what_the_command_writes() -> None:
    text = PAGE.read_text()
    assert with_tables(text, TABLES) == text


def test_each_row_of_the_plans_has_a_line_of_rising_times() -> None:
    lines = list(times_table())[2:]
    assert len(lines) == sum(len(names) for _, _, names in PLANS.values())
    (ocgan,) = [line for line in lines if "`learn/mnist` | `ocgan`" in line]
    assert ocgan.count("min") + ocgan.count(" h") == 3
