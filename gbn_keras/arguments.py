"""Checks of arguments, common to the layer, the schedule and the regimes."""

import numbers

# The range of float32, in which gbn-keras computes: the smallest number above 0, and
# the first number that is too large.
_FLOAT32 = 2.0**-149, 2.0**128


def integer(name: str, value, at_least: int) -> int:
    """`value` as an int; raises a ValueError unless it is an integer >= `at_least`."""
    is_integer = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not is_integer or value < at_least:
        raise ValueError(
            f"{name} must be an integer of at least {at_least}. "
            f"Received: {name}={value!r}."
        )
    return int(value)


def nearest_multiples(number: int, factor: int) -> str:
    """The positive multiples of `factor` around a number that is none: `64 or 96`."""
    below = number // factor * factor
    return " or ".join(str(size) for size in (below, below + factor) if size)


def positive_number(name: str, value, wanted: str = "a finite number") -> float:
    """`value` as a float; raises a ValueError unless finite and > 0 in float32."""
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    least, end = _FLOAT32
    if not is_number or not least <= value < end:
        raise ValueError(
            f"{name} must be {wanted} above 0, in float32. Received: {name}={value!r}."
        )
    return float(value)
