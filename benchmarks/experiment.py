"""Trainings that a benchmark compares: their arms, their folders, its command line.

Each training has its own run directory, as the program writes it, in
`FOLDER/TASK/ARM/seed_N`. So the same command goes on after an interruption, and
`results.py collect FOLDER/TASK` keeps what is finished.

`accelerator.py train` trains the same on JAX, where TensorFlow need not be. So nothing
here imports it before the first training.
"""

import argparse
import contextlib
import dataclasses
import math
import os
import pathlib
import re
import sys
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # As train.py does.

from absl import flags
from matplotlib.figure import Figure
from scipy import stats

import gbn_train
from gbn_keras.networks import find_network
from gbn_keras.regime import REGIMES
from gbn_keras.training.errors import NotFinite, Stopped, UsageError
from gbn_keras.training.run.run_directory import read_outcome, write_whole
from gbn_keras.training.settings import Settings

# In the folder of a task, the command that trains it.
COMMAND = "command.txt"

# For each arm, how its trainings ended, one for each seed: see `read_outcome`.
Results = dict[str, list[dict]]


@dataclasses.dataclass(frozen=True)
class Variant:
    """What to change in a training, for which the program has no flag.

    Attributes:
        flags: Flags of the program, besides.
        momentum: Momentum instead of the regime's; `None` for the regime's.
        loses_momentum: Whether it starts from zero at every epoch.
        flips_and_crops: Whether to pad by 2 pixels, crop at random and flip images that
            the program does not augment.
    """

    flags: tuple[str, ...] = ()
    momentum: float | None = None
    loses_momentum: bool = False
    flips_and_crops: bool = False


UNCHANGED = Variant()

# Pixels of padding for `Variant.flips_and_crops`, as published.
PADDING = 2


def train_plainly(arm: str, settings: Settings, data) -> None:
    """Trains as the program does."""
    from gbn_keras.training import trainer

    trainer.train(settings, data, verbose=0)


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What a benchmark trains and shows.

    Attributes:
        script: The name of its file.
        heading: What it is called in `RESULTS.md`.
        tasks: For each task, the flags that all its arms share.
        arms: A function that gives the flags of each arm of a task, by its name.
        table: A function that makes the task's tables, as Markdown.
        picture: A function of results and task that draws them, if there is one.
        train: A function that trains an arm with these settings on these data.
        variant: A function that gives an arm's `Variant`, which `train` must follow.
        usual: A regular expression for the names of the arms to train by default.
    """

    script: str
    heading: str
    tasks: dict[str, list[str]]
    arms: Callable[[str], dict[str, list[str]]]
    table: Callable[[Results], str]
    picture: Callable[[Results, str], Figure] | None = None
    train: Callable[[str, Settings, Any], None] = train_plainly
    variant: Callable[[str], Variant] = lambda arm: UNCHANGED
    usual: str = ""

    def command(self, task: str) -> str:
        """The command that trains a task."""
        return f"python benchmarks/{self.script} {task}"

    def command_on_jax(self, task: str) -> str:
        """The command that trains a task on JAX."""
        name = self.script.removesuffix(".py")
        return f"python benchmarks/accelerator.py train {name}:{task}"

    def commands(self, task: str) -> tuple[str, str]:
        """The commands that train a task, on TensorFlow and on JAX."""
        return self.command(task), self.command_on_jax(task)

    def chosen(self, task: str, only: str) -> list[str]:
        """The names of a task's arms that match a regular expression."""
        return [arm for arm in self.arms(task) if re.search(only, arm)]

    def flags(self, task: str, arm: str, seed: int) -> list[str]:
        """The program's flags for one training, but for its folders."""
        return [*self.tasks[task], *self.arms(task)[arm], f"--seed={seed}"]

    def run(self, description: str) -> int:
        """Reads the command line, trains what is missing, and prints the tables.

        Args:
            description: What the benchmark does, for `--help`.

        Returns:
            The exit code, as of train.py.
        """
        arguments = self._parse(description)
        try:
            self._train_all(arguments)
        except (flags.Error, UsageError, Stopped) as error:
            print(f"error: {error}", file=sys.stderr)
            return getattr(error, "exit_code", 2)
        return 0

    def _train_all(self, arguments):
        from gbn_keras.training import trainer

        task = arguments.task
        folder = arguments.folder / task
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / COMMAND, self.command(task) + "\n")
        results, data = {}, None
        for arm in self.chosen(task, arguments.only):
            for seed in range(1, arguments.seeds + 1):
                run_dir = arm_directory(folder, arm) / f"seed_{seed}"
                own = [*self.flags(task, arm, seed), f"--run_dir={run_dir}"]
                if arguments.data_dir:
                    own.append(f"--data_dir={arguments.data_dir}")
                settings = Settings(**gbn_train.parse(["train.py", *own]))
                data = data or trainer.load_data(settings)
                print(f"\n{arm}, seed {seed}", flush=True)
                with contextlib.suppress(NotFinite):  # Its folder says so.
                    self.train(arm, settings, data)
                results.setdefault(arm, []).append(read_outcome(run_dir))
            print(f"\n{self.table(results)}", flush=True)
        if arguments.picture:
            self.picture(results, task).savefig(arguments.picture, dpi=150)

    def _parse(self, description):
        parser = argparse.ArgumentParser(description=description)
        parser.add_argument("task", choices=self.tasks)
        parser.add_argument("--seeds", type=int, default=3)
        parser.add_argument(
            "--only",
            default=self.usual,
            help="regular expression for the names of the arms to train; default: "
            f"'{self.usual}'",
        )
        folder = pathlib.Path("runs", self.script.removesuffix(".py"))
        parser.add_argument("--folder", type=pathlib.Path, default=folder)
        parser.add_argument("--data_dir", help="as of train.py")
        if self.picture:
            parser.add_argument("--picture", help="file to draw the results to")
        else:
            parser.set_defaults(picture=None)
        return parser.parse_args()


def settings_without_data(words: list[str]) -> Settings:
    """The settings of these flags of the program. The data need not be here.

    Raises:
        absl.flags.Error: If a flag is unknown or invalid.
    """
    # They may be downloaded, for all we know.
    return Settings(**gbn_train.parse(["train.py", *words, "--download"]))


@contextlib.contextmanager
def regime_of(network: str, variant: Variant):
    """A context in which the network's regime has the variant's momentum.

    Args:
        network: Name of the network.
        variant: The variant.
    """
    name = find_network(network)[1]
    before = REGIMES[name]
    if variant.momentum is not None:
        REGIMES[name] = dataclasses.replace(before, momentum=variant.momentum)
    try:
        yield
    finally:
        REGIMES[name] = before


def arm_directory(folder: pathlib.Path, arm: str) -> pathlib.Path:
    """The folder of an arm's trainings, inside that of its task."""
    return folder / re.sub("[ :]+", "_", arm)


def study_flags(large: int, small: int) -> dict[str, list[str]]:
    """The flags that make each of the paper's arms, for a large and a small batch.

    They are those of `study.study_arms`, for experiments that change something else,
    too.
    """
    plain, short = "--virtual_batch_size=0", "--stretch=1"
    batch = f"--batch_size={large}"
    return {
        "SB": [f"--batch_size={small}", plain, "--lr_scaling=none"],
        "LB": [batch, plain, short, "--lr_scaling=none"],
        "+LR": [batch, plain, short],
        "+GBN": [batch, short],
        "+RA": [batch],
    }


def accuracies(outcomes: list[dict]) -> dict[int, float]:
    """By seed, the validation accuracy in percent of those that did not diverge."""
    return {x["seed"]: 100 * x["accuracy"] for x in outcomes if "accuracy" in x}


def half_interval(deviation: float, number: int) -> float:
    """Half the 95 % interval of a mean, by Student's t; NaN for a single value.

    Args:
        deviation: The sample deviation of the values.
        number: How many values there are.
    """
    if number < 2:
        return math.nan
    return stats.t.ppf(0.975, number - 1) * deviation / math.sqrt(number)


def markdown(names: list[str], lines: list[dict[str, str]]) -> str:
    """A table as Markdown.

    Args:
        names: The names of the columns, in their order.
        lines: The cells of each line, by column. Those that are missing stay empty.
    """
    rows = [[line.get(name, "") for name in names] for line in lines]
    shown = ["| " + " | ".join(cells) + " |" for cells in (names, *rows)]
    shown.insert(1, "|" + "---|" * len(names))
    return "\n".join(shown)
