"""Where the larger rate and the ghosts begin to help, without any more updates.

    python benchmarks/where_it_turns.py digits [--seeds=3]
    python benchmarks/where_it_turns.py mnist --data_dir=...

In a short regime, +LR and +GBN end below LB; in the paper's full regime, above it. This
trains LB, +LR and +GBN (and SB, beside them) with regimes of three lengths. In the
shortest one it then changes one thing at a time: the warm-up, the clipping, and the
factor of the rate. Each training has its own run directory, so the same command goes on
after an interruption. `python benchmarks/results.py collect` keeps what is finished.
"""

import statistics
import sys

from experiment import Experiment, accuracies, markdown, study_flags

from gbn_keras.training.report.comparison import accuracy_shown, study_table

TASKS = {"digits": [], "mnist": ["--dataset=mnist"]}
_BATCH_SIZES = {"digits": (768, 32), "mnist": (4096, 128)}
# The shortest first: the other changes are made to it.
_EPOCHS = {"digits": (6, 12, 30), "mnist": (10, 20, 50)}
_WARMUPS = {"digits": (2, 4), "mnist": (7, 14)}
_CLIPNORMS = {"clipping at 1": 1, "no clipping": 0}
# The square root of M is 5.7 on MNIST, and 4.9 on the digits.
_FACTORS = (2, 4, 8)
_ARMS = ("SB", "LB", "+LR", "+GBN")
# Warm-up and factor change nothing where the rate is not scaled.
_SCALED = _ARMS[2:]


def arms(task):
    """The flags of each arm: its name is that of the change and of the paper's arm."""
    shortest = f"--epochs={_EPOCHS[task][0]}"
    changes = [(f"{n} epochs", [f"--epochs={n}"], _ARMS) for n in _EPOCHS[task]]
    changes += [
        (f"warm-up of {n} updates", [shortest, f"--warmup_updates={n}"], _SCALED)
        for n in _WARMUPS[task]
    ]
    changes += [
        (name, [shortest, f"--clipnorm={norm}"], _ARMS)
        for name, norm in _CLIPNORMS.items()
    ]
    changes += [
        (f"rate times {n}", [shortest, f"--lr_scaling={n}"], _SCALED) for n in _FACTORS
    ]
    study = study_flags(*_BATCH_SIZES[task])
    return {
        f"{name}: {arm}": [*study[arm], *flags]
        for name, flags, trained in changes
        for arm in trained
    }


def table(results):
    """A line for each change, with what the rate and the ghosts give above LB."""
    rows, lines = study_table(results), {}
    first = next(iter(results)).partition(": ")[0]
    for arm, row in rows.items():
        change, _, name = arm.partition(": ")
        line = lines.setdefault(change, {"change": change, "seeds": str(row["seeds"])})
        line[name] = accuracy_shown(row)
        if name == "SB":
            continue
        line["updates"] = f"{row['updates']:,}"
        cuts = {x.get("high_rate_updates") for x in results[arm]} - {None}
        line["before the first cut"] = f"{max(cuts):,}" if cuts else ""
        # Without an arm of its own, a change leaves LB as it is.
        own = results.get(f"{change}: LB") or results.get(f"{first}: LB", [])
        if name != "LB" and (points := _above(results[arm], own)):
            line[f"{name} - LB"] = f"{statistics.mean(points):+.2f}"
    names = ["change", "seeds", "updates", "before the first cut", *_ARMS]
    names += [f"{name} - LB" for name in _SCALED]
    return markdown(names, list(lines.values()))


def _above(outcomes, others):
    """For each seed that both have, by how many points the first one is better."""
    one, two = accuracies(outcomes), accuracies(others)
    return [one[seed] - two[seed] for seed in one if seed in two]


EXPERIMENT = Experiment("where_it_turns.py", "Where it turns", TASKS, arms, table)

if __name__ == "__main__":
    sys.exit(EXPERIMENT.run(__doc__.partition("\n")[0]))
