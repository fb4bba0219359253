"""What a search chooses from: the options with several values, as they were typed."""

from collections.abc import Sequence
from typing import Any

from hydra.core.override_parser.types import IntervalSweep, Override, Transformer

from noveltylab.errors import UserError
from noveltylab.sweep.sweeper import PLAIN

#: Groups whose options can be searched: losses of other data or protocols cannot be compared.
SEARCHED = ("method.", "trainer.", "data.")
#: Options in these groups that make losses or scores another thing.
NOT_SEARCHED = ("method.name", "method.primary", "data.name", "data.root", "data.label")


def key_of(override: Override) -> str:
    """The option that is typed: `method.lr`."""
    return override.get_key_element().lstrip("+")


def is_searched(override: Override) -> bool:
    """Whether the option has several values to choose from; those of PLAIN are a trial's runs.

    Raises:
        UserError: Trials that differ in it cannot be compared.
    """
    key = key_of(override)
    if not override.is_sweep_override() or key in PLAIN:
        return False
    if key.startswith(SEARCHED) and key not in NOT_SEARCHED:
        return True
    raise UserError(
        f"{override.input_line}: search=optuna compares losses of held-out inliers, which differ "
        f"for another {key}; choose options of method, trainer or data, one search for each {key}"
    )


def identity(overrides: Sequence[Override]) -> list[str]:
    """The options that make a search another one, sorted: those that change numbers."""
    from noveltylab.options import kind_of_option

    texts = []
    for override in overrides:
        key = key_of(override)
        if kind_of_option(key) == "free":
            continue
        is_list = override.is_sweep_override()
        value = override.get_value_string() if is_list else override.value()
        texts.append(f"{key}={value}")
    return sorted(texts)


def distribution(override: Override) -> Any:
    """Optuna's distribution of an option's values, as they were typed.

    An interval is one of whole numbers if both ends are; tag(log, ...) spaces it by factors. What
    is listed, and a range, is a choice.
    """
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    interval = override.value()
    if not isinstance(interval, IntervalSweep):
        values: list[Any] = list(override.sweep_iterator(transformer=Transformer.encode))
        return CategoricalDistribution(values)
    low, high = interval.start, interval.end
    if low is None or high is None or not low < high:
        raise UserError(f"{override.input_line}: an interval goes from a lower end to a higher one")
    is_log = "log" in interval.tags
    if is_log and low <= 0:
        raise UserError(f"{override.input_line}: factors need a lower end above zero")
    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high, log=is_log)
    return FloatDistribution(float(low), float(high), log=is_log)


def first_value(values: Any) -> Any:
    """The first of listed values, the lower end of an interval."""
    return values.choices[0] if hasattr(values, "choices") else values.low
