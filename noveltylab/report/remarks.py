"""What is said wherever a row's numbers stand: options, shortened runs, other code or machines."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence

from noveltylab.report.collect import UNVERIFIED
from noveltylab.report.rows import FACTS, OPTIONAL, Row, joined, keys_of, values_of


def differing(rows: Sequence[Row]) -> dict[str, list[str]]:
    """Row name -> `key=value` of the options in which rows of the same method differ."""
    differences: dict[str, list[str]] = {}
    for row in rows:
        siblings = [sibling for sibling in rows if sibling.family == row.family]
        runs = [run for sibling in siblings for run in sibling.runs]
        for key in keys_of(runs) if len(siblings) > 1 else ():
            value = joined(
                run.options.get(key, None if key == OPTIONAL else "absent") for run in row.runs
            )
            if value and len(values_of(key, [run.options for run in runs])) > 1:
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
        groups = (f"{value} ({', '.join(names)})" for value, names in sorted(by_value.items()))
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
        counts = {fact: Counter(run.made_with[fact] for run in row.runs) for fact in FACTS}
        sentences += [f"{fact} {_counted(counts[fact])}" for fact in facts]
        if UNVERIFIED in counts["data"] and "data" not in facts:
            sentences.append(f"data {UNVERIFIED}")
        remarks[row.name] = sentences
    return remarks


def _differing_facts(rows: Sequence[Row]) -> list[str]:
    facts = [run.made_with for row in rows for run in row.runs]
    return [fact for fact in FACTS if len({made_with[fact] for made_with in facts}) > 1]


def _counted(counts: Mapping[str, int]) -> str:
    """`a` for one value, `a (3 runs), b (2 runs)` for several."""
    if len(counts) == 1:
        return next(iter(counts))
    return ", ".join(
        f"{value} ({count} run{'s' * (count != 1)})" for value, count in counts.items()
    )
