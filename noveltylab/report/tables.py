"""Puts runs and the papers' numbers together, one section for each (protocol, data)."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from noveltylab.report.blocks import Bullets, Cell, Document, Grid, GridRow, Section, number
from noveltylab.report.collect import Collected
from noveltylab.report.compare import compare_all
from noveltylab.report.grouping import group, made_apart
from noveltylab.report.latex import own_table, paper_table
from noveltylab.report.ours import our_blocks
from noveltylab.report.papers import field_grid, paper_blocks, rows_of
from noveltylab.report.published import FieldRows, PaperTable
from noveltylab.report.records import Record, our_records, printed_records
from noveltylab.report.rows import MARK, Row
from noveltylab.report.side_by_side import side_by_side
from noveltylab.results.search import Search, ranked, sentences

#: Different commits, versions or machines that are named.
LISTED = 3
LEGEND = (
    "AUROC: larger is better. Class values are means over seeds; a mean is the unweighted mean of classes, '(3 of 10)' of so "
    "many. The 95 % interval of a mean is Student's over the class means, for classes drawn like these, and no narrower than "
    "the test images alone make it; of a single class it is over its seeds. The std, of the mean of classes, is over the seeds "
    "that have every class; the standard error is that of sampling test images, from the interval of each run (the widest of "
    "DeLong's on the logit scale, Newcombe's method 5 and, under 4 images of a kind, Wilson's; an older result's bootstrap "
    "interval takes DeLong's place). Which of two rows is higher is said by Wilcoxon's signed rank over the classes with "
    "Holm's correction, from 6 classes on, and by Student's interval. '=' marks a tie: a difference under the standard "
    "error, under 0.005 on CIFAR-10, or within one seed std. Floors: pca is the residual of 32 principal components, knn the "
    "mean distance to 5 neighbours, both on the very splits of the runs, each split once; features, where a run has it, is by "
    "a network trained on ImageNet, and is neither ranked nor compared. '†' marks shortened runs: fewer "
    "training images, epochs or search steps than the run's own recipe has for that data (recipe=default is minutes long where "
    "its numbers were kept, recipe=paper as long as the paper's). They are averaged, "
    "ranked and counted among the floors apart from whole runs. Rows are compared over the cells that both have on the same "
    "split. No label of an outlier chose the weights of a number "
    "of ours; outlier_val and oracle, where they were asked for, say what such a choice would have added. A transductive score "
    "is scaled over the whole test set."
)


def build(
    collected: Collected,
    tables: Mapping[str, PaperTable],
    name: str,
    idents: Iterable[str] = (),
    field: FieldRows | None = None,
) -> tuple[Document, list[Record]]:
    """The whole report, and the lines of its CSV file.

    Args:
        collected: What lies below the folder.
        tables: The papers' tables by name.
        name: Of the folder, for the title.
        idents: Names of tables; if there are any, the report is about these alone, run or not.
        field: What later methods print, shown below the papers' tables.
    """
    groups = group(collected.runs)
    about = [tables[ident] for ident in idents]
    keys = sorted({(table.protocol, table.data) for table in about} or groups)
    document, records = Document(f"Runs of {name}", _lead(collected), [], []), list[Record]()
    for protocol, data in keys:
        rows = groups.get((protocol, data), [])
        related = _related(tables, protocol, data)
        section = Section(f"{protocol} · {data}")
        for table in related:
            if not about or table in about:
                section.blocks += paper_blocks(table, rows_of(table, rows, related))
                records += printed_records(table)
        if field and (protocol, data) in field:
            section.blocks.append(field_grid(field[protocol, data]))
        if rows:
            comparisons = compare_all(rows)
            blocks = list(our_blocks(rows, comparisons, _about_auroc(related)))
            section.blocks += [*blocks[:2], *_unlike(rows), *blocks[2:], *side_by_side(rows)]
            records += our_records(rows, comparisons, protocol, data)
        document.sections.append(section)
    if collected.searches and not about:
        document.sections.append(search_section(collected.searches))
    not_run = []
    if not about:
        not_run = [t for t in tables.values() if (t.protocol, t.data) not in groups]
    document.end += _end(collected, not_run)
    return document, records


def search_section(searches: Sequence[tuple[Path, Search]]) -> Section:
    """What each search chose, by which number, among which trials."""
    section = Section("Searches")
    for folder, search in searches:
        title = f"{search.method} on {search.data}"
        if folder.parts:
            title += f" ({folder.as_posix()})"
        section.blocks.append(Bullets(title, tuple(sentences(search))))
        section.blocks.append(trial_grid(search))
    return section


def trial_grid(search: Search) -> Grid:
    """The trials, the lowest criterion first."""
    headers = ("trial", *search.space, "held out", "AUROC, chooses nothing")
    rows = []
    for trial in ranked(search.trials):
        name = f"{trial.number}{' (chosen)' if trial == search.chosen else ''}"
        options = [Cell(trial.options.get(option, "")) for option in search.space]
        cells = (Cell(name), *options, significant(trial.value), number(trial.auroc))
        rows.append(GridRow(cells, "ours"))
    return Grid(f"Trials, by the {search.criterion}", headers, tuple(rows), folded=True)


def significant(value: float | None) -> Cell:
    """A number of any size, by six digits; "failed" for none."""
    return Cell("failed") if value is None else Cell(f"{value:.6g}", value)


def latex_tables(
    collected: Collected, tables: Mapping[str, PaperTable], idents: Iterable[str] = ()
) -> dict[str, str]:
    r"""Name -> text of one LaTeX file a table, of the same tables as `build`.

    Those without a run are left out.
    """
    groups = group(collected.runs)
    about = [tables[ident] for ident in idents]
    files: dict[str, str] = {}
    for (protocol, data), rows in sorted(groups.items()):
        related = _related(tables, protocol, data)
        chapters = [table for table in related if not about or table in about]
        for table in chapters:
            files |= paper_table(table, rows_of(table, rows, related))
        if chapters or not about:
            files |= own_table(protocol, data, rows, _about_auroc(related))
    return files


def _related(tables: Mapping[str, PaperTable], protocol: str, data: str) -> list[PaperTable]:
    """The papers' tables of one (protocol, data)."""
    return [t for t in tables.values() if (t.protocol, t.data) == (protocol, data)]


def _about_auroc(tables: Sequence[PaperTable]) -> PaperTable | None:
    """The first table of AUROCs, None if there is none."""
    return next((table for table in tables if table.about_auroc), None)


def _lead(collected: Collected) -> list[str]:
    counts = f"{len(collected.runs)} runs, {len(collected.unfinished)} unfinished, {len(collected.damaged)} damaged."
    if collected.unmeasured:
        counts = f"{counts[:-1]}, {len(collected.unmeasured)} without labelled outliers."
    if collected.checked or collected.unchecked:
        counts += f" {_checked(collected)}"
    provenances = [run.result.provenance for run in collected.runs]
    if not provenances:
        return [counts, LEGEND]
    versions = [_mapping(item, "versions") for item in provenances]
    hardware = [_mapping(item, "hardware") for item in provenances]
    hours = sum(run.result.seconds.get("total", 0.0) for run in collected.runs) / 3600
    made_with = (
        f"noveltylab {_listed(item.get('noveltylab') for item in versions)}, "
        f"torch {_listed(item.get('torch') for item in versions)}, "
        f"commit {_listed(str(item.get('commit'))[:10] for item in provenances)}, "
        f"on {_listed(item.get('gpu') or item.get('cpu') for item in hardware)}; {hours:.1f} hours in all."
    )
    return [counts, f"Made with {made_with}", LEGEND]


def _checked(collected: Collected) -> str:
    told = f"Checked: the numbers of {collected.checked} runs were computed again from their scores files"
    if not collected.unchecked:
        return f"{told}."
    return f"{told}; {len(collected.unchecked)} runs cannot be checked."


def _unlike(rows: Sequence[Row]) -> Iterator[Bullets]:
    """What has to be known before the numbers of these rows are compared."""
    shortened = tuple(f"{row.name}: {'; '.join(row.shortened)}" for row in rows if row.shortened)
    if shortened:
        yield Bullets(f"{MARK} Shortened runs, not to be compared with whole ones", shortened)
    lacking = tuple(f"{row.name}: scored weights {row.lacks}" for row in rows if row.lacks)
    if lacking:
        yield Bullets("Not the whole method: weights from before its last phase began", lacking)
    unlike = tuple(made_apart(rows))
    if unlike:
        yield Bullets("Made with", unlike)


def _mapping(tree: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = tree.get(key)
    return value if isinstance(value, dict) else {}


def _listed(values: Iterable[Any]) -> str:
    names = sorted({str(value) for value in values})
    remainder = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + remainder


def _end(collected: Collected, not_run: Sequence[PaperTable]) -> Iterator[Bullets]:
    unmeasured = "No labelled outliers: runs with scores and thresholds, but no AUROC"
    for title, items in (
        (unmeasured, collected.unmeasured),
        ("Damaged runs, left out", collected.damaged),
        ("Unfinished runs", collected.unfinished),
        ("Trials, left out", collected.trials),
    ):
        if items:
            reasons = [f"{'/'.join(path.parts[-5:])}: {reason}" for path, reason in items]
            yield Bullets(title, tuple(reasons))
    if collected.unchecked:
        counts = Counter(reason for _, reason in collected.unchecked)
        points = tuple(
            f"{count} run{'s' * (count != 1)}: {reason}" for reason, count in counts.items()
        )
        yield Bullets("Runs that cannot be checked", points)
    if not_run:
        yield Bullets(
            "Tables of the papers without a run", tuple(f"{t.ident}: {t.title}" for t in not_run)
        )
