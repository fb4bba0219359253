"""Lengths of time as one says them."""


def in_words(seconds: float) -> str:
    """A length of time as one says it: 12 s, 40 min, 2.5 h, 21 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    hours = seconds / 3600
    return f"{hours:.1f} h" if hours < 9.95 else f"{hours:.0f} h"


def exactly(seconds: float) -> str:
    """The same with two digits of what is short, such as an epoch: 0.12 s, 9.6 s, 75 s, 3 min."""
    return f"{seconds:.2g} s" if seconds < 10 else in_words(seconds)


def clock(seconds: float) -> str:
    """Seconds as hours, minutes and seconds: `0:40:10`."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
