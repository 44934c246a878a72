"""Fits curves to measured distances, without Keras or TensorFlow."""

import dataclasses
import math

import numpy as np


@dataclasses.dataclass(frozen=True)
class Fit:
    """A curve, fitted to distances by least squares.

    Attributes:
        formula: `a + b log t` or `a t^b`.
        a: First coefficient.
        b: Second coefficient.
        r_squared: Fraction of the distances' variance that the curve explains.
        residual: Root mean squared residual, in units of the distance.
    """

    formula: str
    a: float
    b: float
    r_squared: float
    residual: float

    def __call__(self, updates):
        """The distances on the curve after `updates` updates."""
        return _FORMULAS[self.formula](np.asarray(updates, "float64"), self.a, self.b)


def fit_distance(updates, distances) -> tuple[Fit, Fit]:
    """Fits a logarithm and a power law to distances by update.

    Both fits minimize the squared residuals of the distances themselves, with equal
    weight for each point. So with logarithmically spaced updates, each factor of ten
    has equal weight, and you can compare the two residuals.

    Args:
        updates: Numbers of updates, `(points,)`, from 1. Take those of the phase of
            high learning rate, for which the paper claims the logarithm.
        distances: Distances after these updates, `(points,)`.

    Returns:
        `(logarithm, power_law)`.

    Raises:
        ValueError: If there are fewer than 3 points, or an update is below 1.
    """
    updates = np.asarray(updates, "float64")
    distances = np.asarray(distances, "float64")
    if len(updates) < 3 or updates.min() < 1:
        raise ValueError(
            "updates must be at least 3 numbers, all at least 1. Received: "
            f"updates={updates.tolist()}."
        )
    slope, intercept = np.polyfit(np.log(updates), distances, 1)
    factor, exponent = _fit_power_law(updates, distances)
    return (
        _fit("a + b log t", intercept, slope, updates, distances),
        _fit("a t^b", factor, exponent, updates, distances),
    )


def _fit_power_law(updates, distances):
    """Factor and exponent. `scipy.optimize`, which does the same, imports slowly.

    The least squares give the factor for each exponent. So this searches only for the
    exponent, on a grid that it refines around the best one.
    """
    last = updates.max()
    exponent, step = 0.0, 1.0
    while step > 1e-10:
        exponents = exponent + step * np.arange(-16, 17)
        curves = (updates / last) ** exponents[:, None]
        factors = curves @ distances / (curves**2).sum(axis=1)
        residuals = distances - factors[:, None] * curves
        best = (residuals**2).sum(axis=1).argmin()
        exponent, step = exponents[best], step / 16
    return factors[best] / last**exponent, exponent


def _logarithm(updates, a, b):
    return a + b * np.log(updates)


def _power_law(updates, a, b):
    return a * updates**b


_FORMULAS = {"a + b log t": _logarithm, "a t^b": _power_law}


def _fit(formula, a, b, updates, distances):
    residuals = distances - _FORMULAS[formula](updates, a, b)
    squares = (residuals**2).mean()
    return Fit(
        formula, float(a), float(b), 1 - squares / distances.var(), math.sqrt(squares)
    )


@dataclasses.dataclass(frozen=True)
class AlphaFit:
    """A power law, fitted to deviations of the loss.

    Attributes:
        alpha: Twice the slope of log deviation over log distance.
        error: Standard error of alpha, from resampling the directions.
        r_squared: Fraction of the log deviation's variance that the line explains.
    """

    alpha: float
    error: float
    r_squared: float
