"""The example of a search runs as it is, and compares trials fairly."""

import pathlib
import re
import subprocess
import sys

import pytest

pytestmark = pytest.mark.cluster

EXAMPLES = pathlib.Path(__file__).parent.parent / "examples"


def output_of(name, *arguments):
    """What an example prints, in a process of its own."""
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert not done.returncode, f"exit code {done.returncode}: {done.stderr}"
    assert "Warning" not in done.stderr, done.stderr
    return done.stdout


def percents(text):
    return [float(figure) for figure in re.findall(r"([\d.]+) %", text)]


def test_tune_compares_trials_of_as_many_updates():
    output = output_of("tune.py", "--trials=3", "--updates=60")
    _, *trials = output.splitlines()
    accuracies = percents(output)
    assert len(trials) == 3
    assert accuracies == sorted(accuracies, reverse=True)
    assert accuracies[0] > 85
    for trial in trials:
        _, _, updates, samples, batch_size, *_ = trial.replace(",", "").split()
        assert int(updates) == 60
        assert int(samples) == 60 * int(batch_size)
