"""The example of a search runs as it is, and compares trials fairly."""

import pathlib
import re
import runpy
import sys

import pytest

pytestmark = pytest.mark.cluster

EXAMPLES = pathlib.Path(__file__).parent.parent / "examples"


def percents(text):
    return [float(figure) for figure in re.findall(r"([\d.]+) %", text)]


def test_tune_compares_trials_of_as_many_updates(monkeypatch, capsys):
    # In this process, where TensorFlow has started already. Warnings are errors.
    monkeypatch.setattr(sys, "argv", ["tune.py", "--trials=2", "--updates=60"])
    runpy.run_path(str(EXAMPLES / "tune.py"), run_name="__main__")
    output = capsys.readouterr().out
    _, *trials = output.splitlines()
    accuracies = percents(output)
    assert len(trials) == 2
    assert accuracies == sorted(accuracies, reverse=True)
    assert accuracies[0] > 85
    for trial in trials:
        _, _, updates, samples, batch_size, *_ = trial.replace(",", "").split()
        assert int(updates) == 60
        assert int(samples) == 60 * int(batch_size)
