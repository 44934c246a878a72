"""Names and rows of the tables that studies, searches and forecasts write."""

import math
import pathlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # It takes half a second to import, and a report page has no need.
    import pandas as pd

# The columns of the paper's Table 1.
ARMS = ("SB", "LB", "+LR", "+GBN", "+RA")

# The table of a search.
TRIALS = "tune.csv"

# The files of a forecast (`--mode=plan`): its table, what is known of it as a whole,
# and the flagfile of the fastest training.
FORECAST = "plan.csv"
FORECAST_FACTS = "plan.json"
FORECAST_CHOICE = "plan.cfg"
# The names of the columns of hours begin with it; the number of replicas follows.
HOURS_ON = "hours_on_"


def arm_directory(run_dir: pathlib.Path, arm: str, seed: int) -> pathlib.Path:
    """The run directory of one training, inside that of its study."""
    name = arm.lower().removeprefix("+").replace(" ", "_")
    return run_dir / name / f"seed_{seed}"


def trial_row(
    outcome: dict, searched: tuple[str, ...], run_dir: str
) -> dict[str, object]:
    """The table's row for one trial: see `tuning`.

    Args:
        outcome: Outcome of the trial, from `read_outcome`.
        searched: Names of the flags that were searched.
        run_dir: Run directory of the trial.
    """
    row = {
        # The values that the trial used. The budget may have changed them.
        **{name: outcome["settings"][name] for name in searched},
        "accuracy": 100 * outcome.get("accuracy", math.nan),
        **{name: outcome[name] for name in ("updates", "samples", "wall_seconds")},
        "run_dir": run_dir,
    }
    if "diverged" in outcome:
        row["diverged_at"] = outcome["diverged"]
    return row


def best_first(trials: "pd.DataFrame") -> "pd.DataFrame":
    """The trials in the table's order: the best one first, diverged ones last."""
    if "diverged_at" in trials:
        trials["diverged_at"] = trials["diverged_at"].astype("Int64")
    return trials.sort_values(
        ["accuracy", "samples", "trial"], ascending=[False, True, True]
    )
