"""Groups runs into rows, and says what tells the rows apart: options, other code or machines.

What has the same options that make numbers is one row; a shortened run never shares one with whole
runs.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import PurePath

from noveltylab.report.collect import UNVERIFIED, Run
from noveltylab.report.rows import FACTS, Row, joined

SHA256 = re.compile(r"[0-9a-f]{64}")
#: An option that stands in recorded options only where it changes something.
OPTIONAL = "trainer.select_whole"
#: Differences that a row's name shows; the remarks have all of them.
DETAILS = 3

Options = Mapping[str, str]


def group(runs: Iterable[Run]) -> dict[tuple[str, str], list[Row]]:
    """(protocol, data) -> rows, in the order of their names."""
    by_name: defaultdict[tuple[str, str, str, str], list[Run]] = defaultdict(list)
    for run in runs:
        result = run.result
        by_name[result.protocol, result.data, result.method, run.source].append(run)
    groups: dict[tuple[str, str], list[Row]] = {}
    for (protocol, data, method, source), same_name in sorted(by_name.items()):
        groups.setdefault((protocol, data), []).extend(_rows(method, source, same_name))
    return groups


def _rows(method: str, source: str, runs: Iterable[Run]) -> list[Row]:
    """One row for each set of options that make numbers, whole runs first."""
    by_options: defaultdict[tuple[Hashable, ...], list[Run]] = defaultdict(list)
    for run in sorted(runs, key=lambda run: run.cell):
        options = _identity(run)
        by_options[bool(run.shortened), *sorted(options.items())].append(run)
    groups = sorted(by_options.values(), key=lambda runs: (bool(runs[0].shortened), runs[0].cell))
    identities = [_identity(runs[0]) for runs in by_options.values()]
    whole = [_identity(runs[0]) for runs in by_options.values() if not runs[0].shortened]
    rows: dict[str, Row] = {}
    for same_options in groups:
        # the mark tells a shortened run from a whole one already
        peers = identities if same_options[0].shortened else whole
        detail = _detail(_identity(same_options[0]), peers)
        row = Row(method, source, tuple(same_options), detail)
        while row.name in rows:
            row = replace(row, detail=f"{detail} no. {len(rows) + 1}".strip())
        rows[row.name] = row
    return list(rows.values())


def _identity(run: Run) -> dict[str, str]:
    """Everything that has to be the same for two cells of a row."""
    return run.options | {
        "primary": run.result.primary,
        "images": str(run.images),
        "data": str(bool(run.result.data_verified)),
    }


def _detail(identity: Options, identities: Sequence[Options]) -> str:
    """In what it differs from the others, in few words."""
    keys = _differing_keys(identities)
    if "method.primary" in keys and "primary" in keys:
        keys.remove("method.primary")
    if OPTIONAL in keys and OPTIONAL not in identity:
        keys.remove(OPTIONAL)
    words = [_words(key, identity.get(key, "absent")) for key in keys]
    text = ", ".join(words[:DETAILS])
    if len(words) > DETAILS:
        text += f", {len(words) - DETAILS} more"
    return text


def _differing_keys(sets: Sequence[Options]) -> list[str]:
    """The options of which there are several values; having none counts as one."""
    differing = []
    for key in dict.fromkeys(key for options in sets for key in options):
        values = {options.get(key) for options in sets}
        if key == OPTIONAL:
            values.discard(None)
        if len(values) > 1:
            differing.append(key)
    return differing


def _words(key: str, value: str) -> str:
    if key == "images":
        return f"images {value[:8] if SHA256.fullmatch(value) else PurePath(value).name}"
    if key == "data":
        return "data verified" if value == "True" else f"data {UNVERIFIED}"
    return f"{key.rpartition('.')[2]} {value}"


def differing(rows: Sequence[Row]) -> dict[str, list[str]]:
    """Row name -> `key=value` of the options in which rows of the same method differ."""
    by_family: defaultdict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_family[row.family].append(row)
    differences: dict[str, list[str]] = {}
    for siblings in by_family.values():
        if len(siblings) == 1:
            continue
        for key in _differing_keys([run.options for row in siblings for run in row.runs]):
            absent = None if key == OPTIONAL else "absent"
            for row in siblings:
                value = joined(run.options.get(key, absent) for run in row.runs)
                if value:
                    differences.setdefault(row.name, []).append(f"{key}={value}")
    return differences


def made_apart(rows: Sequence[Row]) -> Iterator[str]:
    """What the rows of a table were made with that is not the same for all of them.

    One sentence a fact.
    """
    for fact in _differing_facts(rows):
        by_value: defaultdict[str, list[str]] = defaultdict(list)
        for row in rows:
            values = dict.fromkeys(run.made_with[fact] for run in row.runs)
            by_value[" and ".join(values)].append(row.name)
        groups = [f"{value} ({', '.join(names)})" for value, names in sorted(by_value.items())]
        yield f"Not the same {fact} everywhere: {'; '.join(groups)}"


def notes(rows: Sequence[Row]) -> dict[str, list[str]]:
    """Row name -> what has to be said wherever its numbers stand.

    That it is shortened, what tells it apart, and with what else it was made.
    """
    differences = differing(rows)
    facts = _differing_facts(rows)
    remarks: dict[str, list[str]] = {}
    for row in rows:
        sentences = []
        if row.shortened:
            sentences.append(f"shortened: {'; '.join(row.shortened)}")
        if row.lacks:
            sentences.append(f"scored weights {row.lacks}")
        sentences += differences.get(row.name, [])
        for fact in facts:
            counts = Counter(run.made_with[fact] for run in row.runs)
            sentences.append(f"{fact} {_counted(counts)}")
        unverified = any(run.made_with["data"] == UNVERIFIED for run in row.runs)
        if unverified and "data" not in facts:
            sentences.append(f"data {UNVERIFIED}")
        remarks[row.name] = sentences
    return remarks


def _differing_facts(rows: Sequence[Row]) -> list[str]:
    facts = []
    for fact in FACTS:
        values = {run.made_with[fact] for row in rows for run in row.runs}
        if len(values) > 1:
            facts.append(fact)
    return facts


def _counted(counts: Mapping[str, int]) -> str:
    """`a` for one value, `a (3 runs), b (2 runs)` for several."""
    if len(counts) == 1:
        return next(iter(counts))
    parts = [f"{value} ({count} run{'s' * (count != 1)})" for value, count in counts.items()]
    return ", ".join(parts)
