"""What CA-Entropy's entropy is worth where it can fall, from kept results and by one rule.

docs/notes/claims.md has these sentences.

python -m experiments.entropy

The rule is that of rule.py.
"""

from statistics import mean

from experiments.rule import Row, aurocs, cells, compared, of_extra

#: Plan -> its rows in the order of the paper's table 4: without attention and entropy, with entropy,
#: with attention, with both.
PLANS = {
    "entropy": ("ca_entropy_gan", "ca_entropy_entropy", "ca_entropy_attention", "ca_entropy_full"),
    "full_schedule_cifar10": (
        "ca_entropy_gan",
        "ca_entropy_entropy",
        "ca_entropy_attention",
        "ca_entropy",
    ),
}


def described(meaning: str, row: Row) -> str:
    """A row's mean AUROC, with the entropy and the largest probability of its codes of test
    inliers.
    """
    entropy, largest = of_extra(row, "entropy_inliers"), of_extra(row, "p_max_inliers")
    return (
        f"{meaning} {mean(aurocs(row, 'novelty')):.4f} (entropy {entropy:.2f}, p_max {largest:.2f})"
    )


def by_class(row: Row) -> list[float]:
    """The AUROC of each class, its seeds averaged: seeds of one class are no independent pairs."""
    classes = sorted({inlier for inlier, _ in row})
    return [
        mean(aurocs({cell: row[cell] for cell in row if cell[0] == inlier}, "novelty"))
        for inlier in classes
    ]


def shared_cells(plan: str) -> list[Row]:
    """The rows of a plan, in the order of PLANS, with the cells that all four have."""
    kept = cells(plan)
    rows = [kept[name] for name in PLANS[plan]]
    shared = [cell for cell in rows[0] if all(cell in row for row in rows)]
    return [{cell: row[cell] for cell in shared} for row in rows]


def sentences(plan: str) -> list[str]:
    """The findings of a plan, one sentence each."""
    neither, entropy, attention, both = shared_cells(plan)
    classes = {inlier for inlier, _ in neither}
    seeds = {seed for _, seed in neither}
    means = ", ".join(
        (
            described("without attention and entropy", neither),
            described("with entropy", entropy),
            described("with attention", attention),
            described("with both", both),
        )
    )
    each = "one seed" if len(seeds) == 1 else f"{len(seeds)} seeds each"
    return [
        f"Mean AUROC over {len(classes)} classes, {each}: {means}.",
        f"The entropy, without attention: {difference(entropy, neither)}.",
        f"The entropy, with attention: {difference(both, attention)}.",
        f"The attention, without entropy: {difference(attention, neither)}.",
        f"The attention, with entropy: {difference(both, entropy)}.",
        f"Both, against neither: {difference(both, neither)}.",
    ]


def difference(first: Row, second: Row) -> str:
    """First minus second over the classes, and the verdict."""
    pairs = zip(by_class(first), by_class(second), strict=True)
    return compared([of_first - of_second for of_first, of_second in pairs])


def main() -> None:
    for plan in PLANS:
        print(f"learn/{plan}")
        for line in sentences(plan):
            print(line)


if __name__ == "__main__":
    main()
