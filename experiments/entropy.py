"""What CA-Entropy's entropy is worth where it can fall, from kept results and by one rule.

docs/notes/claims.md has these sentences.

python -m experiments.entropy

The rule is that of rule.py.
"""

from statistics import mean

from experiments.rule import Row, aurocs, cells, compared, of_extra

#: The rows of learn/entropy.yaml, in the order of the paper's table 4, and what they are.
ROWS = {
    "ca_entropy_gan": "without attention and entropy",
    "ca_entropy_entropy": "with entropy",
    "ca_entropy_attention": "with attention",
    "ca_entropy_full": "with both",
}
#: (first, second): the same but for the entropy, or but for the attention.
PAIRS = {
    "The entropy, without attention": ("ca_entropy_entropy", "ca_entropy_gan"),
    "The entropy, with attention": ("ca_entropy_full", "ca_entropy_attention"),
    "The attention, without entropy": ("ca_entropy_attention", "ca_entropy_gan"),
    "The attention, with entropy": ("ca_entropy_full", "ca_entropy_entropy"),
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


def sentences() -> list[str]:
    """The findings, one sentence each."""
    rows = cells("entropy")
    classes = {inlier for inlier, _ in rows["ca_entropy_gan"]}
    seeds = {seed for _, seed in rows["ca_entropy_gan"]}
    means = ", ".join(described(meaning, rows[name]) for name, meaning in ROWS.items())
    lines = [f"Mean AUROC over {len(classes)} classes, {len(seeds)} seeds each: {means}."]
    for what, (first, second) in PAIRS.items():
        pairs = zip(by_class(rows[first]), by_class(rows[second]), strict=True)
        lines.append(f"{what}: {compared([with_it - without for with_it, without in pairs])}.")
    return lines


def main() -> None:
    for line in sentences():
        print(line)


if __name__ == "__main__":
    main()
