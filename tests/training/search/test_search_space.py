"""The declaration of a search: what can be read, and what suits which batch."""

import keras_tuner
import pytest

from gbn_keras.training.errors import UsageError
from gbn_keras.training.planner import Planner
from gbn_keras.training.search.search_space import SearchSpace

EXAMPLES = 1536


@pytest.fixture
def declared(make_settings):
    """The space of some declarations, and its hyperparameters."""

    def declare(*declarations, flags=()):
        settings = make_settings("--mode=tune", "--model=f1_digits", *flags)
        space = SearchSpace(declarations, settings, Planner(EXAMPLES))
        hp = keras_tuner.HyperParameters()
        space.declare(hp)
        return space, hp

    return declare


def values_of(hp):
    """By hyperparameter, its values or the ends of its range."""
    return {
        one.name: getattr(one, "values", None)
        if isinstance(one, keras_tuner.engine.hyperparameters.Choice)
        else (one.min_value, one.max_value, one.sampling)
        for one in hp.space
    }


def test_lists_and_ranges_become_hyperparameters(declared):
    _, hp = declared(
        "learning_rate: 0.01..1",
        "l2:0,0.0005",
        "lr_scaling: none, sqrt, 3.5",
        "gradient_noise:0..4",
        "batch_size:64,512",
    )
    assert values_of(hp) == {
        "batch_size": [64, 512],
        "learning_rate": (0.01, 1, "log"),
        "l2": [0, 0.0005],
        "lr_scaling": ["none", "sqrt", "3.5"],
        "gradient_noise": (0, 4, "linear"),
    }


def test_a_range_of_sizes_doubles(declared):
    _, hp = declared("batch_size:48..400", "virtual_batch_size:8..32")
    assert values_of(hp) == {
        "batch_size": [48, 96, 192, 384],
        "virtual_batch_size": [8, 16, 32],
    }


def test_a_value_that_does_not_suit_a_batch_is_tried_with_the_others(declared):
    space, hp = declared("virtual_batch_size:16,64,128", "batch_size:32,64,256")
    assert values_of(hp) == {
        "batch_size": [32, 64, 256],
        "virtual_batch_size at batch 32": [16],
        "virtual_batch_size at batch 64": [16, 64],
        "virtual_batch_size at batch 256": [16, 64, 128],
    }
    hp.values |= {"batch_size": 64, "virtual_batch_size at batch 64": 16}
    assert space.settings(hp).virtual_batch_size == 16


def test_the_stretch_is_at_least_that_of_the_batch(declared):
    _, hp = declared("stretch:0.5,full", "batch_size:16,512")
    assert values_of(hp)["stretch at batch 16"] == ["0.5", "full"]
    assert values_of(hp)["stretch at batch 512"] == ["full"]


def test_the_settings_are_the_flags_with_the_chosen_values(declared):
    space, hp = declared(
        "learning_rate:0.01..1", "batch_size:64,512", flags=["--l2=0.001"]
    )
    hp.values |= {"batch_size": 512, "learning_rate": 0.123456789}
    settings = space.settings(hp)
    assert settings.batch_size == 512
    assert settings.learning_rate == 0.1235
    assert settings.l2 == 0.001


@pytest.mark.parametrize(
    "declarations",
    [
        (),
        ("batch_size",),
        ("batch_size:",),
        ("batch_size:many",),
        ("batch_size:0..64",),
        ("batch_size:64..32",),
        ("momentum:0.5,0.9",),
        ("learning_rate:0..1",),
        ("learning_rate:0.1..inf",),
        ("learning_rate:0.1..",),
        ("lr_scaling:sqrt..linear",),
        ("batch_size:64,128", "batch_size:256"),
    ],
)
def test_a_declaration_that_cannot_be_read_is_told(declared, declarations):
    with pytest.raises(UsageError) as error:
        declared(*declarations)
    message = str(error.value)
    assert message.startswith("--search: got ")
    assert all(declaration in message for declaration in declarations)


@pytest.mark.parametrize(
    "declarations, flag, received",
    [
        (("batch_size:64,4000",), "batch_size", "4000"),
        (("virtual_batch_size:16,500", "batch_size:64,128"), "virtual_batch", "500"),
        (("stretch:1,0.4", "batch_size:512"), "stretch", "0.4"),
        (("stretch:0.5..16", "batch_size:64,512"), "stretch", "0.5"),
        (("lr_scaling:cubic",), "lr_scaling", "cubic"),
        (("learning_rate:-1,1",), "learning_rate", "-1"),
    ],
)
def test_a_value_that_suits_no_batch_is_told(declared, declarations, flag, received):
    with pytest.raises(UsageError) as error:
        declared(*declarations)
    assert f"--{flag}" in str(error.value)
    assert received in str(error.value)
