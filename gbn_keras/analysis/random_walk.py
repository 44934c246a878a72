"""A random walk on a random potential: the paper's model of early training.

The walker moves on a line of sites. It tries each of its two neighbours at rate 1, and
goes there with probability `min(1, exp(V(here) - V(there)))`. The potential `V` is
random, with `E (V(x) - V(y))^2 = strength^2 |x - y|^alpha`. To leave a valley of width
`d` takes a time of about `exp(strength d^(alpha/2))`. So the distance grows only with
the logarithm of time: `E x^2 ~ (log t)^(4/alpha)`. For `alpha = 1` this is Sinai's
walk, for which the exponent of 4 is proved.

Example:
```python
potentials = sample_potentials(alpha=1.0, half_width=2000, count=100, strength=20.0)
log_times = np.geomspace(45, 300, 10)
displacements = mean_squared_displacement(potentials, log_times)
fit_exponent(log_times, displacements).exponent  # about 4
```

Reference:
    Hoffer, Hubara, Soudry, "Train longer, generalize better", section 3,
    arXiv 1705.08741. Sinai, "The limiting behavior of a one-dimensional random walk in
    a random medium", Theory of Probability and its Applications 27, 1982.
"""

import dataclasses
import math

import numpy as np
from scipy.optimize import minimize_scalar

from gbn_keras.arguments import integer, positive_number

# Number of nodes of the inverse Laplace transform. More nodes follow a function of log
# t more closely (14: to 1e-4). But their weights have both signs and soon exceed 1 /
# rounding.
_NODES = 14

# Longest log t. exp(-690) is still a normal number.
_LONGEST = 690.0

# Number of potentials per chunk, so that the work fits into the processor's cache.
_CHUNK = 16


def sample_potentials(
    alpha: float,
    half_width: int,
    count: int,
    *,
    strength: float = 1.0,
    seed: int = 0,
) -> np.ndarray:
    """Random potentials with `E (V(x) - V(y))^2 = strength^2 |x - y|^alpha`.

    They are fractional Brownian motion with Hurst exponent `alpha / 2`. The increments
    are drawn exactly, as part of a periodic sequence. The Fourier transform makes its
    covariance diagonal.

    Args:
        alpha: Exponent, above 0 and below 2. At 2, every potential would be a straight
            line.
        half_width: Number of sites on either side of the walker's first site.
        count: Number of potentials.
        strength: Standard deviation between neighbours, in units of the temperature.
        seed: Seed of the potentials.

    Returns:
        `(count, 2 half_width + 1)`. The walker's first site, in the middle, has 0.

    Raises:
        ValueError: If an argument is not as described above.

    Reference:
        Davies, Harte, "Tests for Hurst effect", Biometrika 74, 1987.
    """
    if not 0 < positive_number("alpha", alpha) < 2:
        raise ValueError(f"alpha must be above 0 and below 2. Received: alpha={alpha}.")
    half_width = integer("half_width", half_width, 1)
    strength = positive_number("strength", strength)
    spectrum = _increment_spectrum(alpha, 2 * half_width)
    random = np.random.default_rng(seed)
    potentials = np.zeros((integer("count", count, 1), 2 * half_width + 1))
    for potential in potentials:
        noise = np.fft.rfft(random.standard_normal(4 * half_width))
        increments = np.fft.irfft(noise * np.sqrt(spectrum), 4 * half_width)
        potential[1:] = strength * np.cumsum(increments[: 2 * half_width])
    return potentials - potentials[:, [half_width]]


def mean_squared_displacement(
    potentials, log_times, *, largest_end_share: float = 0.02
) -> np.ndarray:
    """`E x^2` over time on each potential, for a walker that starts in the middle.

    It solves the master equation and samples no walks. The Laplace transform of the
    equation in time is a chain of equations. They are solved from the ends inward, with
    only sums, products and quotients of positive numbers. So the rounding error stays
    relative however small the rates are, and `log t` may be in the hundreds. The
    eigenvalues of the generator would be lost in rounding at `log t` of about 35.
    Stehfest's method transforms back to time, to a relative 1e-4.

    Args:
        potentials: Potentials, `(potentials, sites)`, with an odd number of sites, in
            units of the temperature. The outermost sites reflect.
        log_times: Natural logarithms of the times, `(times,)`, up to 690. In one unit
            of time, the walker tries each neighbour once.
        largest_end_share: Largest fraction of `E x^2`, averaged over the potentials,
            that may come from the outer tenth of the sites. With more, the walk feels
            the ends. 1 allows all.

    Returns:
        `(potentials, times)`, in squares of the distance between sites.

    Raises:
        ValueError: If the number of sites is even, a time is too long, or the walk
            comes too near the ends.

    Reference:
        Stehfest, "Numerical inversion of Laplace transforms", Communications of the ACM
        13, 1970.
    """
    potentials = np.asarray(potentials, "float64")
    log_times = np.asarray(log_times, "float64")
    if potentials.ndim != 2 or potentials.shape[1] % 2 == 0 or potentials.shape[1] < 3:
        raise ValueError(
            "potentials must be (potentials, sites) with an odd number of sites, at "
            f"least 3. Received: potentials of shape {potentials.shape}."
        )
    if log_times.ndim != 1 or not (np.abs(log_times) <= _LONGEST).all():
        raise ValueError(
            f"log_times must be numbers up to {_LONGEST:.0f}. Received: "
            f"log_times={log_times.tolist()}."
        )
    chunks = np.split(potentials, range(_CHUNK, len(potentials), _CHUNK))
    squares, outer = np.concatenate(
        [_squares_at_times(chunk, log_times) for chunk in chunks], axis=1
    )
    share = (outer.mean(axis=0) / squares.mean(axis=0)).max()
    # Rounding may bring a fraction of 1 slightly above 1.
    if min(share, 1.0) > largest_end_share:
        raise ValueError(
            f"potentials must be wide enough: at most a fraction {largest_end_share} "
            "of E x^2 may come from the outer tenth of the sites. Received: "
            f"{share:.2g} on {potentials.shape[1]} sites. Use more sites, a stronger "
            "potential or shorter times."
        )
    return squares


@dataclasses.dataclass(frozen=True)
class ExponentFit:
    """`E x^2 = factor (log t + shift)^exponent`.

    Attributes:
        exponent: The exponent. In theory it is `4 / alpha`.
        error: Standard error of the exponent, from resampling the potentials.
        shift: Shift of `log t`, in the same units.
        factor: Factor, in squares of the distance between sites.
    """

    exponent: float
    error: float
    shift: float
    factor: float

    def __call__(self, log_times):
        """`E x^2` on the curve."""
        return self.factor * (np.asarray(log_times) + self.shift) ** self.exponent


def fit_exponent(
    log_times, displacements, *, resamples: int = 100, seed: int = 0
) -> ExponentFit:
    """Fits the power of `log t` with which `E x^2` grows.

    It fits `log E x^2` by least squares, so that each time has equal weight. The power
    law holds for long times. Some corrections to `log t` do not depend on a barrier's
    height: the walker tries at rate 1, and the rims of a valley of whole sites are a
    bit too high. So the first correction is a shift of `log t`. Its size is unknown, so
    it is fitted. Without it, the exponent comes out too small, by more than a third for
    `alpha` of 0.5.

    Args:
        log_times: Logarithms of the times, `(times,)`, at least 4, increasing, above 0.
            The longest should be five times the shortest, or shift and exponent are
            hard to tell apart. At the shortest, the walk should be some ten sites away,
            so that it does not feel single sites. The error does not cover that.
        displacements: `E x^2` on each potential, `(potentials, times)`, with at least 2
            potentials.
        resamples: Number of times to resample the potentials for the error.
        seed: Seed of the resampling.

    Raises:
        ValueError: If the times or the displacements are not as described above.
    """
    log_times = np.asarray(log_times, "float64")
    displacements = np.asarray(displacements, "float64")
    if len(log_times) < 4 or log_times[0] <= 0 or (np.diff(log_times) <= 0).any():
        raise ValueError(
            "log_times must be at least 4 increasing numbers above 0. Received: "
            f"log_times={log_times.tolist()}."
        )
    if displacements.shape[1:] != log_times.shape or len(displacements) < 2:
        raise ValueError(
            f"displacements must be (potentials, {len(log_times)}) of at least 2 "
            f"potentials. Received: displacements of shape {displacements.shape}."
        )
    shift, exponent, log_factor = _shifted_power(log_times, displacements.mean(axis=0))
    draws = np.random.default_rng(seed).integers(
        len(displacements), size=(resamples, len(displacements))
    )
    again = [
        _shifted_power(log_times, displacements[draw].mean(axis=0))[1] for draw in draws
    ]
    error = float(np.std(again, ddof=1))
    return ExponentFit(float(exponent), error, float(shift), math.exp(log_factor))


def _increment_spectrum(alpha, count):
    """The spectrum of increments between neighbours, periodic over `2 count` sites."""
    lags = np.arange(count + 1.0)
    covariance = (lags + 1) ** alpha - 2 * lags**alpha + np.abs(lags - 1) ** alpha
    circle = np.concatenate([covariance, covariance[-2:0:-1]]) / 2
    # No value is negative, but rounding may make a 0 negative.
    return np.fft.rfft(circle).real.clip(min=0)


def _squares_at_times(potentials, log_times):
    """`E x^2` and its part from the outer tenth: `(2, potentials, times)`."""
    nodes = np.arange(1, _NODES + 1) * math.log(2)
    rates = np.exp(np.log(nodes) - log_times[:, np.newaxis])
    transforms = _squares_when_stopped(potentials, rates.ravel())
    shape = (2, len(potentials), *rates.shape)
    return transforms.reshape(shape) @ _stehfest_weights()


def _squares_when_stopped(potentials, rates):
    """As `_squares_at_times`, for walkers that are stopped at random at given rates.

    This is the Laplace transform in time, multiplied by the rate. Let `stopped` be the
    rate at which a walker is stopped at site `x + 1` or farther out. Then a walker at
    site `x` steps out and is stopped there, without coming back, at the rate
    `outward stopped / (inward + stopped)`. Applied site by site from the ends inward,
    this turns a half line into the rate at which it stops a walker at the middle. The
    squared distances of the stops are summed in the same way.
    """
    outward, inward = _rates_of_half_lines(potentials)
    distances = np.arange(len(outward) + 1.0)
    squares = distances**2
    outer = np.where(distances > 0.9 * distances[-1], squares, 0.0)
    counted = np.stack([distances > 0, squares, outer], axis=1)[..., None, None, None]
    stopped = np.zeros((3, *outward.shape[1:3], len(rates))) + counted[-1] * rates
    for site in reversed(range(len(outward))):
        stopped *= outward[site] / (inward[site] + stopped[0])
        stopped += counted[site] * rates
    # The middle site belongs to both half lines, so it is counted here.
    stopped = stopped.sum(axis=1)
    return stopped[1:] / (rates + stopped[0])


def _rates_of_half_lines(potentials):
    """Rates out and back between neighbours: `(sites - 1, halves, potentials, 1)`."""
    middle = potentials.shape[1] // 2
    halves = np.stack([potentials[:, middle:], potentials[:, middle::-1]])
    rises = np.moveaxis(np.diff(halves), -1, 0)[..., np.newaxis]
    return np.exp(-rises.clip(min=0)), np.exp(rises.clip(max=0))


def _stehfest_weights():
    """Weights of transform times rate, at the rates `k log 2 / t`, `k` from 1."""
    half = _NODES // 2
    weights = []
    for k in range(1, _NODES + 1):
        terms = (
            j ** (half + 1)
            * (math.comb(half, j) * math.comb(2 * j, j) * math.comb(j, k - j))
            / math.factorial(half)
            for j in range((k + 1) // 2, min(k, half) + 1)
        )
        weights.append((-1) ** (k + half) * sum(terms) / k)
    return np.array(weights)


def _shifted_power(log_times, displacement):
    """Shift, exponent and log factor of the least-squares fit."""
    log_displacement = np.log(displacement)

    def line(log_first):
        shift = math.exp(log_first) - log_times[0]
        x = np.log(log_times + shift)
        (slope, intercept), residual, *_ = np.polyfit(x, log_displacement, 1, full=True)
        return residual[0], shift, slope, intercept

    # For a given shift the fit is a straight line, so only one number is searched: the
    # shortest time after the shift, from a tenth of it to ten times the longest.
    bounds = math.log(log_times[0] / 10), math.log(10 * log_times[-1])
    best = minimize_scalar(lambda s: line(s)[0], bounds=bounds, method="bounded")
    return line(best.x)[1:]
