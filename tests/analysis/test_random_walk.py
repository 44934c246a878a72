"""The random walk moves as the theory says, and the fit recovers its exponent."""

import numpy as np
import pytest
from marks import slow
from scipy.linalg import eigh_tridiagonal, expm

from gbn_keras.analysis.random_walk import (
    fit_exponent,
    mean_squared_displacement,
    sample_potentials,
)

HALF_WIDTH = 8
SQUARES = np.arange(-HALF_WIDTH, HALF_WIDTH + 1) ** 2


@pytest.fixture(scope="module")
def potentials():
    return sample_potentials(1.0, HALF_WIDTH, 20, strength=1.5, seed=1)


def generator(potential):
    """Of the walk, as a matrix: columns are where it comes from."""
    sites = len(potential)
    rates = np.zeros((sites, sites))
    for site in range(sites - 1):
        rise = potential[site + 1] - potential[site]
        rates[site + 1, site] = min(1, np.exp(-rise))
        rates[site, site + 1] = min(1, np.exp(rise))
    return rates - np.diag(rates.sum(axis=0))


def displacement(potentials, times):
    """Of walks on a few sites, whose ends they do feel."""
    return mean_squared_displacement(potentials, np.log(times), largest_end_share=1.0)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.5])
def test_squared_differences_of_the_potential_grow_with_the_power_alpha(alpha):
    potentials = sample_potentials(alpha, 64, 4000, strength=3.0, seed=2)
    for start, distance in ((0, 1), (0, 128), (60, 8), (100, 28)):
        differences = potentials[:, start + distance] - potentials[:, start]
        wanted = 9 * distance**alpha
        assert np.mean(differences**2) == pytest.approx(wanted, rel=0.1)
        assert abs(np.mean(differences)) < 4 * np.sqrt(wanted / 4000)


def test_potentials_are_0_in_the_middle_and_follow_the_seed():
    potentials = sample_potentials(0.7, 5, 3, seed=1)
    assert potentials.shape == (3, 11)
    assert (potentials[:, 5] == 0).all()
    np.testing.assert_array_equal(potentials, sample_potentials(0.7, 5, 3, seed=1))
    assert (potentials != sample_potentials(0.7, 5, 3, seed=2)).sum() == 30
    # No two potentials are alike, nor the two sides of one.
    assert len(np.unique(potentials.round(9))) == 31


def test_the_displacement_is_that_of_the_master_equation(potentials):
    times = np.array([0.1, 1.0, 10.0, 100.0, 1e4])
    wanted = [
        [SQUARES @ expm(t * generator(potential))[:, HALF_WIDTH] for t in times]
        for potential in potentials
    ]
    np.testing.assert_allclose(displacement(potentials, times), wanted, rtol=3e-4)


def test_the_displacement_is_that_of_the_generators_eigenvalues(potentials):
    # Detailed balance: with exp(-V) taken to both sides the generator is symmetric.
    times = np.array([1.0, 1e3, 1e6])
    for potential, found in zip(
        potentials, displacement(potentials, times), strict=True
    ):
        rates = generator(potential)
        neighbours = np.sqrt(np.diag(rates, 1) * np.diag(rates, -1))
        values, vectors = eigh_tridiagonal(np.diag(rates), neighbours)
        scale = np.exp(-potential / 2)
        decays = np.exp(np.minimum(values, 0) * times[:, np.newaxis])
        chances = (decays * vectors[HALF_WIDTH]) @ vectors.T * scale
        np.testing.assert_allclose(chances.sum(axis=1), 1, rtol=1e-8)
        np.testing.assert_allclose(found, chances @ SQUARES, rtol=3e-4)


def test_after_ever_so_long_the_walk_is_in_balance_with_the_potential():
    potentials = sample_potentials(1.0, HALF_WIDTH, 20, strength=40.0, seed=1)
    found = displacement(potentials, np.exp([680.0]))[:, 0]
    chances = np.exp(potentials.min(axis=1, keepdims=True) - potentials)
    chances /= chances.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found, chances @ SQUARES, rtol=1e-6)


def test_a_barrier_of_height_b_is_crossed_at_log_t_of_b():
    # One valley on each side: 0 at the middle, a barrier at 1, a deep valley at 2. The
    # walker leaves at the rate 2 exp(-b), and half of the time it goes on outward.
    for barrier in (20.0, 300.0):
        potential = np.array([[-99, barrier, 0.0, barrier, -99]])
        log_times = barrier + np.log([0.01, 0.1, 1.0, 3.0])
        found = mean_squared_displacement(potential, log_times, largest_end_share=1.0)
        wanted = 4 * (1 - np.exp(-np.exp(log_times - barrier)))
        np.testing.assert_allclose(found[0], wanted, rtol=1e-3)


def test_on_a_flat_potential_the_walk_is_ordinary_diffusion():
    times = np.array([0.5, 5.0, 50.0])
    found = mean_squared_displacement(np.zeros((1, 201)), np.log(times))
    np.testing.assert_allclose(found[0], 2 * times, rtol=1e-4)


def test_the_potential_may_have_any_height_at_the_start(potentials):
    times = np.array([1.0, 100.0])
    found = displacement(potentials + 1000, times)
    np.testing.assert_allclose(found, displacement(potentials, times), rtol=1e-6)


def test_left_and_right_are_alike(potentials):
    times = np.array([1.0, 100.0])
    found = displacement(potentials[:, ::-1], times)
    np.testing.assert_allclose(found, displacement(potentials, times), rtol=1e-12)


def test_a_walk_that_feels_the_ends_is_refused():
    with pytest.raises(ValueError, match="on 21 sites"):
        mean_squared_displacement(np.zeros((1, 21)), [np.log(50.0)])


@pytest.mark.parametrize(
    "alpha, strength, within",
    [
        (0.5, 61.0, 0.4),
        slow(1.0, 33.0, 0.15),
        (1.5, 50.0, 0.15),
    ],
)
def test_the_walk_grows_with_the_theorys_power_of_log_t(alpha, strength, within):
    # Fewer sites and potentials, so less exact than the benchmark. The rougher the
    # potential, the more sites it takes.
    potentials = sample_potentials(alpha, 3000, 200, strength=strength, seed=3)
    log_times = np.geomspace(120, 600, 8)
    fit = fit_exponent(log_times, mean_squared_displacement(potentials, log_times))
    assert fit.exponent == pytest.approx(4 / alpha, rel=within)
    assert abs(fit.exponent - 4 / alpha) < 3 * fit.error


def test_sinais_walk_has_the_known_factor():
    # E x^2 = 61/45 (log t)^4 for long times at strength 1 (the second moment of
    # Kesten's law), and a shift of log t before.
    potentials = sample_potentials(1.0, 1500, 250, strength=20.0, seed=4)
    log_times = np.geomspace(60, 250, 8)
    mean = mean_squared_displacement(potentials, log_times).mean(axis=0)
    shift = np.polyfit(log_times, mean**0.25, 1)
    assert (20 * shift[0]) ** 4 == pytest.approx(61 / 45, rel=0.25)


def test_the_fit_recovers_exponent_shift_and_factor():
    log_times = np.geomspace(10, 100, 8)
    curve = 0.3 * (log_times + 7) ** 3.1
    fit = fit_exponent(log_times, np.outer([0.5, 1.5, 1.0], curve))
    assert fit.exponent == pytest.approx(3.1, rel=1e-3)
    assert fit.shift == pytest.approx(7, abs=0.05)
    assert fit.factor == pytest.approx(0.3, rel=0.01)
    # All potentials agree on the exponent.
    assert fit.error < 1e-6
    np.testing.assert_allclose(fit(log_times), curve, rtol=1e-4)


def test_the_fits_error_is_how_much_fits_of_other_potentials_differ():
    log_times = np.geomspace(10, 100, 8)
    random = np.random.default_rng(0)
    # Each potential with an exponent of its own.
    exponents = 3 + 0.2 * random.standard_normal((20, 50, 1))
    fits = [fit_exponent(log_times, log_times**e, resamples=50) for e in exponents]
    spread = np.std([fit.exponent for fit in fits])
    assert np.mean([fit.error for fit in fits]) == pytest.approx(spread, rel=0.3)


@pytest.mark.parametrize("alpha", [0.0, 2.0, -1.0, float("nan")])
def test_an_alpha_out_of_range_is_refused(alpha):
    with pytest.raises(ValueError, match=f"alpha={alpha}"):
        sample_potentials(alpha, 4, 1)


@pytest.mark.parametrize("argument", ["half_width", "count"])
def test_sizes_below_1_are_refused(argument):
    sizes = {"half_width": 4, "count": 2, argument: 0}
    with pytest.raises(ValueError, match=f"{argument}=0"):
        sample_potentials(1.0, **sizes)


@pytest.mark.parametrize("shape", [(5,), (1, 6), (1, 1)])
def test_potentials_without_a_middle_are_refused(shape):
    with pytest.raises(ValueError, match=rf"shape \({shape[0]},"):
        mean_squared_displacement(np.zeros(shape), [1.0])


def test_times_beyond_the_range_of_numbers_are_refused():
    with pytest.raises(ValueError, match=r"log_times=\[1.0, 700.0\]"):
        mean_squared_displacement(np.zeros((1, 5)), [1.0, 700.0])


@pytest.mark.parametrize(
    "log_times", [[1.0, 2.0, 3.0], [0.0, 1.0, 2.0, 3.0], [1.0, 3.0, 2.0, 4.0]]
)
def test_times_that_cannot_be_fitted_are_refused(log_times):
    with pytest.raises(ValueError, match=r"log_times=\[" + str(log_times[0])):
        fit_exponent(log_times, np.ones((5, len(log_times))))


@pytest.mark.parametrize("shape", [(1, 4), (5, 3), (4,)])
def test_displacements_that_do_not_fit_the_times_are_refused(shape):
    with pytest.raises(ValueError, match=rf"shape \({shape[0]},"):
        fit_exponent([1.0, 2.0, 3.0, 4.0], np.ones(shape))
