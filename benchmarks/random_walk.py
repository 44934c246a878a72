"""Compares the exponent of a random walk on a random potential with the theory.

    python benchmarks/random_walk.py [--potentials=3000] [--json=FILE] [--picture=FILE]

For each alpha, the benchmark samples potentials with
`E (V(x) - V(y))^2 ~ |x - y|^alpha`, and computes the walk's `E x^2` at times up to
`e^500` from the master equation. Then it fits the exponent of its growth with `log t`.
According to the theory, it is `4 / alpha`. The fit uses the times at which the walk is
at least ten sites away, on average. `without shift` is the slope of a plain power law
through the same points. Takes three minutes on one core.
"""

import argparse
import pathlib
import time

import numpy as np
from side_by_side import write_json

from gbn_keras.analysis.random_walk import (
    fit_exponent,
    mean_squared_displacement,
    sample_potentials,
)

# Strength of the potential for each alpha. With a weaker potential, walks get farther,
# so single sites matter less. These are, in round numbers, the weakest potentials with
# which none of thousands of walks comes near the ends in the longest time.
STRENGTHS = {0.5: 40, 1.0: 17, 1.5: 20}

HALF_WIDTH = 8000

LOG_TIMES = np.geomspace(45, 500, 14)

# At smaller distances, single sites matter: between sites, the potential is not that of
# the theory, whose exponent is for larger distances.
_NEAREST = 10


def main():
    """Measures, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--potentials", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", help="file to write all figures to")
    parser.add_argument("--picture", help="file for a plot of E x^2 by log t")
    arguments = parser.parse_args()
    print(f"{arguments.potentials} potentials of {2 * HALF_WIDTH + 1} sites")
    print(
        f"{'alpha':>6}{'4/alpha':>9}{'recovered':>18}{'shift':>8}{'without shift':>15}"
        f"{'root E x^2 at the end':>23}{'s':>5}"
    )
    rows = [measure(alpha, arguments) for alpha in STRENGTHS]
    if arguments.picture:
        draw(rows, arguments.picture)
    write_json(arguments.json, rows)


def measure(alpha, arguments):
    """Computes the walks for one alpha; prints and returns the row."""
    started = time.perf_counter()
    potentials = sample_potentials(
        alpha,
        HALF_WIDTH,
        arguments.potentials,
        strength=STRENGTHS[alpha],
        seed=arguments.seed,
    )
    displacements = mean_squared_displacement(potentials, LOG_TIMES)
    mean = displacements.mean(axis=0)
    fitted = mean >= _NEAREST**2
    fit = fit_exponent(LOG_TIMES[fitted], displacements[:, fitted])
    error = displacements.std(axis=0, ddof=1) / len(displacements) ** 0.5
    row = {
        "alpha": alpha,
        "strength": STRENGTHS[alpha],
        "log_times": LOG_TIMES.tolist(),
        "mean_squared_displacement": mean.tolist(),
        "error_of_the_mean": error.tolist(),
        "fitted_from": LOG_TIMES[fitted][0],
        "exponent": fit.exponent,
        "exponent_error": fit.error,
        "shift": fit.shift,
        "factor": fit.factor,
        "slope_without_shift": np.polyfit(
            np.log(LOG_TIMES[fitted]), np.log(mean[fitted]), 1
        )[0],
    }
    recovered = f"{fit.exponent:.2f} +- {fit.error:.2f}"
    print(
        f"{alpha:6}{4 / alpha:9.2f}{recovered:>18}{fit.shift:8.1f}"
        f"{row['slope_without_shift']:15.2f}{mean[-1] ** 0.5:23.0f}"
        f"{time.perf_counter() - started:5.0f}",
        flush=True,
    )
    return row


def draw(rows, file):
    """Plots `E x^2` by `log t`, with the fits and the theory's slopes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    for row, marker, shade in zip(rows, "osD", ("0.0", "0.35", "0.6"), strict=True):
        alpha, slope = row["alpha"], 4 / row["alpha"]
        mean = row["mean_squared_displacement"]
        axes.errorbar(
            LOG_TIMES,
            mean,
            row["error_of_the_mean"],
            linestyle="none",
            marker=marker,
            color=shade,
            label=f"alpha {alpha}: exponent {row['exponent']:.2f} +- "
            f"{row['exponent_error']:.2f} (4 / alpha = {slope:.2f})",
        )
        times = np.geomspace(row["fitted_from"], LOG_TIMES[-1])
        fitted = row["factor"] * (times + row["shift"]) ** row["exponent"]
        axes.plot(times, fitted, color=shade, linewidth=1)
        late = times[times > 150]
        theory = fitted[-1] * (late / late[-1]) ** slope
        axes.plot(late, theory, "--", color=shade, linewidth=1)
    axes.set(
        xlabel="log t",
        ylabel="E x^2, in squared distances between sites",
        title="Random walk on a random potential\n"
        "points: master equation; lines: fit; dashed: slope 4 / alpha",
        xscale="log",
        yscale="log",
    )
    ticks = (50, 100, 200, 300, 400, 500)
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend()
    pathlib.Path(file).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=150)


if __name__ == "__main__":
    main()
