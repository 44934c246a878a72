"""The landscape mode measures a fresh or a trained network, and changes neither."""

import json

import keras
import numpy as np
import pandas as pd
import pytest
from trainings import SHORT

import gbn_train
from gbn_keras.training import trainer
from gbn_keras.training.errors import UsageError
from gbn_keras.training.settings import Settings
from gbn_keras.training.trained import loss_landscape

FLAGS = ("--mode=landscape", "--batch_size=256", "--directions=10")


pytestmark = pytest.mark.usefixtures("shallow")


def test_of_a_fresh_network(make_settings, tmp_path):
    text = loss_landscape.measure_landscape(make_settings(*FLAGS))
    run = tmp_path / "run"
    table = pd.read_csv(run / "landscape.csv")
    assert table["distance"].iloc[0] == 0.1 and table["distance"].iloc[-1] == 10
    described = json.loads((run / "landscape.json").read_text())
    assert described["network"] == "f1_digits on digits, at initialization"
    # As of a training, where it was measured and with what.
    assert described["settings"]["directions"] == 10 and described["seed"] == 1
    assert described["commit"] and described["versions"]["keras"] == keras.__version__
    assert described["hardware"]["cores"] > 0
    # Against the slope of the table: twice that of the logarithms.
    logs = np.log(table[["distance", "deviation"]])
    slope = np.polyfit(logs["distance"], logs["deviation"], 1)[0]
    fit = described["fits"]["distance 0.1 to 10"]
    assert fit["alpha"] == pytest.approx(2 * slope)
    assert 1.5 < fit["alpha"] < 2.5
    assert f"alpha {fit['alpha']:.3f} ± {fit['error']:.3f}" in text
    assert (run / "plots" / "landscape.png").stat().st_size > 10_000
    # The same again, and not the flags of another.
    assert loss_landscape.measure_landscape(make_settings(*FLAGS)) == text
    with pytest.raises(UsageError, match="--directions=10 there, --directions=11 here"):
        loss_landscape.measure_landscape(make_settings(*FLAGS, "--directions=11"))


def test_of_the_network_that_a_run_has_trained(make_settings, tmp_path):
    settings = make_settings(*SHORT)
    result = trainer.train(settings, verbose=0)
    run = tmp_path / "run"
    model, flags = (run / "model.keras").read_bytes(), (run / "flags.cfg").read_text()
    # By the run directory alone: its flagfile says what was trained.
    flags_given = ["--mode=landscape", f"--run_dir={run}", "--directions=10"]
    settings = Settings(**gbn_train.parse(["train.py", *flags_given]))
    text = loss_landscape.measure_landscape(settings)
    assert "f1_digits on digits, trained: loss" in text
    described = json.loads((run / "landscape.json").read_text())
    # Of a training batch, by its own statistics: near the loss after the training.
    assert described["loss"] < 2 * result["loss"] < 1
    assert described["examples"] == 256
    assert (run / "model.keras").read_bytes() == model
    assert (run / "flags.cfg").read_text() == flags


def test_on_several_devices_is_refused(make_settings, tmp_path):
    flags = (*FLAGS, "--strategy=mirrored", "--replicas=2")
    with pytest.raises(UsageError, match="--strategy: got mirrored, wanted one"):
        loss_landscape.measure_landscape(make_settings(*flags))
    assert not (tmp_path / "run").exists()
