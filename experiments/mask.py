"""What OLED's learned mask is worth, from kept results and by one rule; docs/notes/claims.md has these sentences.

python -m experiments.mask

The rule is that of rule.py.
"""

from statistics import mean

from experiments.rule import Row, aurocs, cells, compared, extras, of_extra

#: The controls of learn/oled_mask.yaml and learn/oled_mask_wide.yaml, and what they are.
CONTROLS = {
    "oled_frozen": "a mask generator that is never trained",
    "oled_half": "the image at half its brightness",
    "oled_none": "no mask",
}
#: Ways to choose the epoch in the same plan.
SELECTIONS = {
    "oled": "the last epoch",
    "oled_rec_mask": "the lowest L_rec + L_mask",
    "oled_rec": "the lowest L_rec",
}


def sentences() -> list[str]:
    """The findings, one sentence each."""
    rows = cells("oled_mask")
    learned = aurocs(rows["oled"], "s_mask")
    lines = [
        *against_controls(rows, ""),
        *against_controls(cells("oled_mask_wide"), "At half the channels: "),
    ]
    hard = rows["oled_ste"]
    gains = [first - second for first, second in zip(aurocs(hard, "s_mask"), learned, strict=True)]
    lines.append(
        f"With the straight-through gradient segmentation is {of_extra(hard, 'segmentation_auroc_inliers'):.3f} and "
        f"{of_extra(hard, 'hidden_share_inliers'):.2f} of the digit is hidden, where Eq. 2 hides "
        f"{of_extra(rows['oled'], 'hidden_share_inliers'):.2f}; its s_mask minus that of Eq. 2 is {compared(gains)}."
    )
    means = {meaning: mean(aurocs(rows[name], "s_mask")) for name, meaning in SELECTIONS.items()}
    means_text = ", ".join(f"{meaning} {value:.4f}" for meaning, value in means.items())
    epochs = {result.selected.epoch for name in SELECTIONS for result in rows[name].values()}
    same = (
        f"; all chose epoch {min(epochs)}, so that nothing tells the rules apart here"
        if len(epochs) == 1
        else ""
    )
    lines.append(f"s_mask by what chose the epoch: {means_text}{same}.")
    (digits,) = cells("mnist_two_thirds").values()
    gains = [
        first - second
        for first, second in zip(aurocs(digits, "s_mask"), aurocs(digits, "s_rec"), strict=True)
    ]
    largest = max(range(len(gains)), key=gains.__getitem__)
    lines.append(
        f"s_mask minus s_rec over MNIST's ten digits, one seed: {compared(gains)}; without digit {largest} "
        f"({gains[largest]:+.4f}) the mean is {mean(gains[:largest] + gains[largest + 1 :]):+.4f}."
    )
    eight = digits[8, 0].extra
    both = " and ".join(
        f"{eight[f'segmentation_auroc_{kind}']:.3f}" for kind in ("inliers", "outliers")
    )
    every = [float(result.extra["segmentation_auroc_inliers"]) for result in digits.values()]
    lines.append(
        f"Table 5, segmentation by the mask of digit 8: {both} on inliers and outliers where 0.850 and 0.847 are printed; "
        f"ten digits have {min(every):.2f} to {max(every):.2f} on inliers."
    )
    return lines


def against_controls(rows: dict[str, Row], start: str) -> list[str]:
    """The learned mask of a plan beside each control, in sentences that begin with `start`."""
    learned = aurocs(rows["oled"], "s_mask")
    lines = [
        f"{start}s_mask with the learned mask: {mean(learned):.4f} on digit 2, mean of {len(learned)} seeds."
    ]
    for method, meaning in CONTROLS.items():
        control = aurocs(rows[method], "s_mask")
        differences = [first - second for first, second in zip(learned, control, strict=True)]
        by_seed = ", ".join(f"{difference:+.4f}" for difference in differences)
        lines.append(
            f"Against {meaning} ({mean(control):.4f}) by seed {by_seed}; mean {compared(differences)}."
        )
    untrained, trained = (
        extras(rows[method], "segmentation_auroc_inliers") for method in ("oled_frozen", "oled")
    )
    gains = [first - second for first, second in zip(trained, untrained, strict=True)]
    lines.append(
        f"Segmentation of inliers: {mean(untrained):.3f} never trained, {mean(trained):.3f} learned; mean {compared(gains)}."
    )
    return lines


def main() -> None:
    for line in sentences():
        print(line)


if __name__ == "__main__":
    main()
