"""Any command line runs, or ends in one line with exit code 2 and changes nothing.

Most of the accepted ones are followed up to the training (flags, data, plan, network,
run directory), which a stand-in for `fit` ends; the others train, in few updates.
"""

import collections
import contextlib
import io
import os
import pathlib
import re
import shutil
import subprocess
import sys
import traceback
from unittest import mock

import keras
import pytest
import tensorflow_datasets as tfds
from command_lines import Command, commands, make_world, short_trainings
from hypothesis import HealthCheck, Phase, example, given, settings

import gbn_train
from gbn_keras.training.trained import loss_landscape

ROOT = pathlib.Path(gbn_train.__file__).parent


class Reached(BaseException):
    """The training would begin."""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder in which commands are run."""
    return World(tmp_path_factory.mktemp("fuzz"))


class World:
    """A folder that is as it was before every command."""

    def __init__(self, folder):
        self._template = folder / "template"
        self._template.mkdir()
        finished = ("--run_dir=finished", "--batch_size=64", "--max_updates=1")
        code, _, err = run(Command(finished, is_run_to_the_end=True), self._template)
        assert code == 0, err
        make_world(self._template)
        self.folder = folder / "outer" / "world"
        self.outcomes = collections.Counter()
        self.restore()

    def restore(self):
        shutil.rmtree(self.folder.parent, ignore_errors=True)
        shutil.copytree(self._template, self.folder)

    def content(self):
        return {
            path: path.read_bytes() if path.is_file() else None
            for path in self.folder.parent.rglob("*")
        }

    def check(self, command: Command):
        """Runs a command; asserts that it runs, or that it is refused as it should."""
        (self.folder / "generated.cfg").write_bytes(command.flagfile)
        before = self.content()
        code, out, err = run(command, self.folder)
        changed = before != self.content()
        if changed:
            self.restore()
        if code == 2:
            assert err.startswith("error: "), err
            assert err.endswith("\n") and len(err.splitlines()) == 1, err
            assert not out, out
            assert not changed
        elif code == 3:  # Its rate was too high, which only training can tell.
            assert re.fullmatch("\nstopped: (update|all) .*\n", err), err
        else:
            assert code in (0, "reached"), err
        self.outcomes[reason(code, err)] += 1


def run(command, folder):
    """Exit code, standard output and standard error."""
    out, err = io.StringIO(), io.StringIO()
    unreachable = mock.Mock(side_effect=ConnectionError("no network in a test"))
    with contextlib.ExitStack() as stack:
        enter = stack.enter_context
        stack.callback(os.chdir, os.getcwd())
        os.chdir(folder)
        enter(
            mock.patch.object(
                tfds.core.DatasetBuilder, "download_and_prepare", unreachable
            )
        )
        if not command.is_run_to_the_end:
            reached = mock.Mock(side_effect=Reached)
            enter(mock.patch.object(keras.Model, "fit", reached))
            enter(mock.patch.object(loss_landscape, "loss_deviation", reached))
        enter(contextlib.redirect_stdout(out))
        enter(contextlib.redirect_stderr(err))
        try:
            code = gbn_train.main(["train.py", *command.flags])
        except Reached:
            code = "reached"
        except SystemExit as end:  # After --help.
            code = end.code or 0
        except Exception:
            code = "traceback"
            err.write(traceback.format_exc())
    return code, out.getvalue(), err.getvalue()


def reason(code, err):
    if code != 2:
        ends = {0: "ran to the end", 3: "diverged", "reached": "would have trained"}
        return ends[code]
    flag = re.match(r"error: (?:flag )?(--\w+)", err)
    return f"refused: {flag[1] if flag else ' '.join(err.split()[1:4])}"


def example_of(*flags, flagfile=b""):
    return example(Command(flags, flagfile))


fuzz = settings(
    derandomize=True, deadline=None, suppress_health_check=list(HealthCheck)
)


# What was a traceback, or was told after something had been written.
@example_of("--seed=4294967296")
@example_of(f"--epochs={10**30}")
@example_of("--strategy=mirrored", "--replicas=100000")
@example_of("--learning_rate=1e300")
@example_of("--gradient_noise=1e300")
@example_of("--memory_budget=nan")
@example_of("--mode=sweep", "--batch_sizes=²")
@example_of("--mode=landscape", f"--directions={10**9}")
@example_of("--flagfile=binary.cfg")
@example_of("--flagfile=self.cfg", "--batch_size=0")
@example_of("--flagfile=generated.cfg", flagfile=b"--run_dir=a\0b")
@example_of("--run_dir=\udcff")
@example_of("--run_dir=a\n--seed=3")
@example_of("--run_dir=binary_flags")
@example_of("--run_dir=odd_result", "--flagfile=finished/flags.cfg")
@example_of("--mode=evaluate", f"--run_dir={'x' * 5000}")
@example_of("--mode=evaluate", "--run_dir=binary_flags")
@example_of("--mode=evaluate", "--run_dir=finished", "--micro_batch_size=7")
@example_of("--dataset=mnist", "--data_dir=~nobody_here")
@example_of(f"--dataset={'x' * 5000}")
@example_of(
    *("--strategy=mirrored", "--replicas=2", "--virtual_batch_size=0", "--jit=on"),
    "--run_dir=new",
)
@example_of("--mode=study", "--batch_size=64", "--micro_batch_size=32")
@example_of("--mode=tune", "--search=batch_size:32,64", "--trial_samples=1")
@example_of(
    *("--mode=tune", "--search=batch_size:32,64"),
    *("--trial_samples=64", "--trial_updates=1"),
)
@example_of(
    *("--mode=tune", "--search=batch_size:32,64", "--tuner=hyperband"),
    *("--epochs=9", "--trial_updates=3"),
)
@settings(fuzz, max_examples=10)
@given(command=commands())
def test_a_command_runs_or_ends_in_one_line_and_changes_nothing(world, command):
    world.check(command)


# `test_any_command` draws others.
@example(
    Command(
        (
            *("--mode=tune", "--search=batch_size:32,64", "--trials=1", "--clipnorm=5"),
            *("--jit=off", "--max_updates=2", "--epochs=1", "--train_examples=96"),
        ),
        is_run_to_the_end=True,
    )
)
@settings(fuzz, phases=[Phase.explicit])
@given(command=short_trainings())
def test_what_is_accepted_runs_to_the_end(world, command):
    world.check(command)


@pytest.mark.slow
@pytest.mark.parametrize("strategy, number", [(commands, 500), (short_trainings, 60)])
def test_any_command(world, strategy, number, capsys):
    world.outcomes.clear()

    @settings(fuzz, max_examples=number)
    @given(command=strategy())
    def check_all(command):
        world.check(command)

    check_all()
    with capsys.disabled():
        print(f"\n{world.outcomes.total()} command lines of {strategy.__name__}()")
        for outcome, count in world.outcomes.most_common():
            print(f"{count:5} {outcome}")


@pytest.mark.parametrize(
    "flags, flagfile",
    [
        (("--flagfile=generated.cfg", "--run_dir=begun"), b"--model=\0\n"),
        pytest.param(
            ("--mode=study", "--batch_size=64", "--micro_batch_size=32"),
            b"",
            # TensorFlow has started by then, as in the process that
            # `test_checkpoint.py` stops with another exit code.
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_process_ends_so_too(world, flags, flagfile):
    (world.folder / "generated.cfg").write_bytes(flagfile)
    before = world.content()
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *flags],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=world.folder,
    )
    assert done.returncode == 2
    # Before it are TensorFlow's notices about the machine, if it was imported.
    *others, last = done.stderr.splitlines()
    notice = (
        r"[IWE]\d{4} \d\d:\d\d:\d\d|WARNING: All log messages before absl|To enable"
    )
    assert last.startswith("error: ") and all(re.match(notice, x) for x in others)
    assert not done.stdout and world.content() == before
