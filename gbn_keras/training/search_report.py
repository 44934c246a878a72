"""What a search found: table, picture, and the flagfile of the best training."""

import pathlib

import pandas as pd

from gbn_keras.training import pictures
from gbn_keras.training.run_directory import read_flags, write_whole
from gbn_keras.training.tuning import TRIALS

BEST = "best.cfg"

# Flags that say how to search, or where the trial was.
_NOT_OF_A_TRAINING = {
    *("run_dir", "tuner", "search", "trials", "trial_updates", "trial_samples"),
    *("lost_after", "seeds"),
}
_SHOWN = 20
_MEASURED = ("trial", "accuracy", "updates", "samples", "wall_seconds", "run_dir")


def report_search(run_dir: pathlib.Path) -> str:
    """Writes a search's `best.cfg` and picture; returns its table as text."""
    trials = pd.read_csv(run_dir / TRIALS)
    best = trials.iloc[0]
    flags = read_flags(pathlib.Path(best["run_dir"]))
    flagfile = run_dir / BEST
    write_whole(
        flagfile,
        f"# The best of {len(trials)} trials in {run_dir}: validation accuracy\n"
        f"# {best['accuracy']:.2f} % after {best['updates']:,} updates and "
        f"{best['samples']:,} samples.\n#\n"
        f"#   python train.py --flagfile={flagfile}\n#\n"
        + "".join(
            f"--{name}={value}\n"
            for name, value in flags.items()
            if name not in _NOT_OF_A_TRAINING
        ),
    )
    searched = [name for name in trials.columns if name not in _MEASURED]
    picture = pictures.search(trials, searched, read_flags(run_dir))
    pictures.save(picture, run_dir, "tune.png")
    return _as_text(trials.head(_SHOWN), searched)


def _as_text(trials, searched):
    text = pd.DataFrame({"accuracy %": trials["accuracy"].map("{:.2f}".format)})
    for name in ("updates", "samples"):
        text[name] = trials[name].map("{:,}".format)
    text["seconds"] = trials["wall_seconds"].map("{:.1f}".format)
    for name in searched:
        text[name] = trials[name]
    return text.set_index(trials["trial"]).to_string()
