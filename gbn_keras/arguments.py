"""Checks of the arguments that the layer, the schedule and the regimes share."""

import numbers

# In float32, in which is computed: from the least number above 0, below the end.
_FLOAT32 = 2.0**-149, 2.0**128


def integer(name: str, value, at_least: int) -> int:
    """`value` as an int; a ValueError if it is not an integer of that size."""
    is_integer = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not is_integer or value < at_least:
        raise ValueError(
            f"{name} must be an integer of at least {at_least}. "
            f"Received: {name}={value!r}."
        )
    return int(value)


def nearest_multiples(number: int, factor: int) -> str:
    """The positive multiples of `factor` next to a number that is none: `64 or 96`."""
    below = number // factor * factor
    return " or ".join(str(size) for size in (below, below + factor) if size)


def positive_number(name: str, value, wanted: str = "a finite number") -> float:
    """`value` as a float; a ValueError if in float32 it is not finite and above 0."""
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    least, end = _FLOAT32
    if not is_number or not least <= value < end:
        raise ValueError(
            f"{name} must be {wanted} above 0, in float32. Received: {name}={value!r}."
        )
    return float(value)
