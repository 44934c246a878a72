"""The tables of numbers that the report reads without pandas."""

import numpy as np
import pandas as pd
import pytest

from gbn_keras.training.report import columns, pictures


@pytest.mark.parametrize("rows", [0, 1, 3])
def test_the_columns_are_those_that_pandas_reads(rows, tmp_path):
    file = tmp_path / "metrics.csv"
    text = "updates,epoch,'a, b'\n6,0,0.25\n12,1,\n18,2,1e-300\n".replace("'", '"')
    file.write_text("\n".join(text.splitlines()[: rows + 1]) + "\n")
    table = columns.read_columns(file)
    wanted = pd.read_csv(file)
    assert list(table) == list(wanted)
    for name, column in table.items():
        np.testing.assert_array_equal(column, wanted[name].to_numpy("float64"))


def test_an_incomplete_last_row_has_no_number_where_it_ends(tmp_path):
    file = tmp_path / "metrics.csv"
    file.write_text("updates,loss,val_loss\n6,0.5,0.4\n12,0.2")
    table = columns.read_columns(file)
    assert table["updates"].tolist() == [6, 12]
    assert table["loss"].tolist() == [0.5, 0.2]
    assert columns.without_gaps(table, "val_loss")["updates"].tolist() == [6]


def test_a_curve_is_mean_and_range_over_the_seeds():
    nothing = np.nan
    metrics = columns.concatenate(
        [
            {"epoch": np.arange(3.0), "val_accuracy": np.array(accuracy)}
            for accuracy in ([0.1, nothing, 0.7], [0.3, nothing, 0.6])
        ]
    )
    figure, [[axes]] = pictures.panels_of((4, 3))
    pictures._plot_range(
        *(axes, metrics, "epochs", pictures._accuracy),
        *({"color": "black", "marker": "o"}, "arm"),
    )
    line = axes.lines[0].get_xydata()
    np.testing.assert_allclose(line, [[1, 20], [3, 65]])
    band = axes.collections[0].get_datalim(axes.transData)
    np.testing.assert_allclose(band.get_points(), [[1, 10], [3, 70]])
