"""Reports on the loss around the weights, as `--mode=landscape` measured it."""

import pathlib

from matplotlib.figure import Figure

from gbn_keras.analysis.fits import AlphaFit
from gbn_keras.training.report import pictures
from gbn_keras.training.report.columns import read_columns
from gbn_keras.training.run.run_directory import read_landscape


def read(run_dir: pathlib.Path) -> tuple[str, dict[str, dict[str, str]], str, Figure]:
    """The result in a sentence, its table with a note, and its picture."""
    measured = read_landscape(run_dir)
    fits = {name: AlphaFit(**fit) for name, fit in measured["fits"].items()}
    name, fit = next(iter(fits.items()))
    headline = (
        f"Roughness of the loss: alpha {fit.alpha:.3f} ± {fit.error:.3f}, {name}."
    )
    rows = {
        name: {
            "alpha": f"{fit.alpha:.3f} ± {fit.error:.3f}",
            "the paper's": f"{measured['paper']['alpha']}",
            "R²": f"{fit.r_squared:.4f}",
        }
        for name, fit in fits.items()
    }
    note = (
        f"{measured['examples']:,} examples have a loss of {measured['loss']:.4g} at "
        f"weights of norm {measured['weights_norm']:.4g}. At a distance r along "
        f"{measured['directions']} random directions, it deviates by about r^(alpha/2)."
    )
    table = read_columns(run_dir / "landscape.csv")
    picture = pictures.landscape(
        table, fits, measured["network"], measured["directions"]
    )
    return headline, rows, note, picture
