"""Names and rows of the tables that studies and searches leave."""

import math
import pathlib

import pandas as pd

# The columns of the paper's Table 1.
ARMS = ("SB", "LB", "+LR", "+GBN", "+RA")

# The table of a search.
TRIALS = "tune.csv"


def arm_directory(run_dir: pathlib.Path, arm: str, seed: int) -> pathlib.Path:
    """The run directory, in a study's, of one training."""
    name = arm.lower().removeprefix("+").replace(" ", "_")
    return run_dir / name / f"seed_{seed}"


def trial_row(
    outcome: dict, searched: tuple[str, ...], run_dir: str
) -> dict[str, object]:
    """What the table has of one trial: see `tuning`.

    Args:
        outcome: As of `read_outcome`.
        searched: The flags that were searched.
        run_dir: The trial's.
    """
    row = {
        # What they came to, the budget considered.
        **{name: outcome["settings"][name] for name in searched},
        "accuracy": 100 * outcome.get("accuracy", math.nan),
        **{name: outcome[name] for name in ("updates", "samples", "wall_seconds")},
        "run_dir": run_dir,
    }
    if "diverged" in outcome:
        row["diverged_at"] = outcome["diverged"]
    return row


def best_first(trials: pd.DataFrame) -> pd.DataFrame:
    """The rows of trials in the order of the table, those that diverged last."""
    if "diverged_at" in trials:
        trials["diverged_at"] = trials["diverged_at"].astype("Int64")
    return trials.sort_values(
        ["accuracy", "samples", "trial"], ascending=[False, True, True]
    )
