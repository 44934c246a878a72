"""Summaries, plots and errors name a ghost layer; weight files fit its parent too."""

import json
import sys
import zipfile

import keras
import numpy as np
import pytest

from gbn_keras import GhostBatchNormalization, to_ghost_batch_norm

INPUTS = np.random.default_rng(0).normal(2, 3, (12, 4)).astype("float32")


class Derived(GhostBatchNormalization):
    """A user's own."""


def mixed(*sizes):
    """A network with a layer for each size, 0 for one of Keras's own."""
    layers = [
        keras.layers.BatchNormalization()
        if size == 0
        else GhostBatchNormalization(size)
        for size in sizes
    ]
    return keras.Sequential([keras.Input((4,)), *layers])


def summary(model):
    """As it is printed, without the table's lines."""
    lines = []
    model.summary(print_fn=lambda text, **_: lines.append(text), line_length=200)
    return "\n".join(lines)


def test_a_summary_shows_the_ghosts_and_their_size():
    shown = summary(mixed(4, 0, 8, None))
    for size in (4, 8, None):
        assert f"(GhostBatchNormalization({size}))" in shown
    assert shown.count("(BatchNormalization)") == 1


def test_a_summary_shows_what_was_converted():
    model = mixed(0, 0)
    assert "Ghost" not in summary(model)
    to_ghost_batch_norm(model, 6)
    assert summary(model).count("(GhostBatchNormalization(6))") == 2


def test_a_plot_shows_the_ghosts_and_their_size():
    dot = keras.utils.model_to_dot(mixed(4, 0), show_layer_names=True).to_string()
    assert "GhostBatchNormalization(4)" in dot
    assert "(BatchNormalization)" in dot


def test_a_layer_says_what_it_is():
    layer = GhostBatchNormalization(4, name="norm")
    for size in (4, 16):
        layer.virtual_batch_size = size
        assert repr(layer) == str(layer)
        for part in ("GhostBatchNormalization", "name=norm", f"batch_size={size}"):
            assert part in repr(layer)
    assert GhostBatchNormalization.__name__ == "GhostBatchNormalization"
    assert repr(Derived(4)).startswith("<Derived name=derived,")


def test_a_layer_without_a_name_is_called_after_its_class():
    names = [layer.name for layer in mixed(4, 4).layers]
    assert all(name.startswith("ghost_batch_normalization") for name in names)


def test_an_error_says_which_class_it_is():
    with pytest.raises(ValueError, match="passed to GhostBatchNormalization"):
        GhostBatchNormalization(4, momentun=0.9)


def test_a_file_that_needs_this_package_says_for_what(tmp_path, monkeypatch):
    mixed(4).save(tmp_path / "model.keras")
    # As where it is not installed.
    for name in [name for name in sys.modules if name.split(".")[0] == "gbn_keras"]:
        monkeypatch.setitem(sys.modules, name, None)
    objects = keras.saving.get_custom_objects()
    for name in [name for name in objects if name.startswith("gbn_keras>")]:
        monkeypatch.delitem(objects, name)
    with pytest.raises(TypeError, match="locate class 'GhostBatchNormalization'"):
        keras.models.load_model(tmp_path / "model.keras")


@pytest.mark.parametrize("ending", [".weights.h5", ".keras"])
@pytest.mark.parametrize("sizes", [(4, 4), (4, 0, 6), (0, 4, 0, None)])
def test_files_of_mixed_models_fit_models_without_ghosts_and_back(
    tmp_path, ending, sizes
):
    ghosts, plain = mixed(*sizes), mixed(*(0 for _ in sizes))
    rng = np.random.default_rng(1)
    for source, target in ((ghosts, plain), (plain, ghosts)):
        weights = [rng.uniform(1, 2, w.shape) for w in source.get_weights()]
        source.set_weights(weights)
        file = tmp_path / f"model{ending}"
        source.save(file) if ending == ".keras" else source.save_weights(file)
        target.load_weights(file)
        for weight, loaded in zip(weights, target.get_weights(), strict=True):
            np.testing.assert_array_equal(loaded, weight.astype("float32"))


def test_a_derived_class_is_filed_under_its_own_name(tmp_path):
    model = keras.Sequential([keras.Input((4,)), Derived(4)])
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(
        tmp_path / "model.keras", custom_objects={"Derived": Derived}
    )
    assert type(loaded.layers[0]) is Derived
    with pytest.raises(ValueError, match="could not be loaded"):
        mixed(4).load_weights(tmp_path / "model.keras")


def test_a_model_is_read_that_was_written_when_the_class_had_its_parents_name(
    tmp_path,
):
    model = mixed(4, 0)
    model(INPUTS, training=True)
    model.save(tmp_path / "new.keras")
    with (
        zipfile.ZipFile(tmp_path / "new.keras") as new,
        zipfile.ZipFile(tmp_path / "old.keras", "w") as old,
    ):
        for name in new.namelist():
            content = new.read(name)
            if name == "config.json":
                content = content.replace(
                    b'"class_name": "GhostBatchNormalization"',
                    b'"class_name": "BatchNormalization"',
                )
                layers = json.loads(content)["config"]["layers"]
                assert layers[1]["class_name"] == layers[2]["class_name"]
            old.writestr(name, content)
    loaded = keras.models.load_model(tmp_path / "old.keras")
    assert [type(layer) for layer in loaded.layers] == [
        GhostBatchNormalization,
        keras.layers.BatchNormalization,
    ]
    for weight, expected in zip(loaded.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, expected)
