"""The paper's figures and its theory are kept and shown as they were measured."""

import json
import pathlib
import sys

import numpy as np
import pandas as pd
import pytest
from run_directories import write_landscape, write_sweep, write_training

ROOT = pathlib.Path(__file__).parent.parent
sys.path.append(str(ROOT / "benchmarks"))

import result_figures  # noqa: E402
import result_files  # noqa: E402
import result_runs  # noqa: E402
import result_tables  # noqa: E402
import result_theory  # noqa: E402
import results  # noqa: E402
from conftest import settings_of  # noqa: E402

PAGE = "<!-- results: {} -->\n<!-- end of results -->\n"


def page_with(names, groups):
    return results.filled(PAGE.format(names), groups, {}, "page.md")


def sweep_rows(folder, sizes="128,4096"):
    return result_runs.collect([write_sweep(folder, sizes)], "abc")


@pytest.fixture
def distances(tmp_path):
    """The rows of a sweep: one distance grows by a logarithm, one by a power law."""
    run_dir = write_sweep(tmp_path / "sweep", "128,4096")
    updates = np.unique(np.geomspace(1, 4000, 40).astype(int))
    for size, total in (
        (128, 1 + 2 * np.log(updates)),
        (4096, 3 * np.sqrt(updates)),
    ):
        table = pd.DataFrame({"updates": updates, "total": total})
        folder = run_dir / f"batch_{size}" / "seed_1"
        table.to_csv(folder / "weight_distance.csv", index=False)
    return result_runs.collect([run_dir], "abc")


@pytest.mark.parametrize("name", result_figures.NAMES)
def test_what_is_not_run_is_shown_with_the_command_of_its_run_directory(name, tmp_path):
    flags = [f"--flagfile={ROOT}/configs/scaled/{name}.cfg"]
    settings = result_runs.resolved(flags)
    is_landscape = name in result_figures.LANDSCAPES
    assert settings.mode == ("landscape" if is_landscape else "sweep")
    (tmp_path / "flags.cfg").write_text(settings.flagfile())
    command = result_runs.command_of(tmp_path)
    assert page_with(name, {}).splitlines()[2] == f"Not run: `{command}`"
    assert f"Not run: `{command}`\n" in results.all_results({}, {})


def test_the_fits_of_the_weights_distance_are_kept(distances, tmp_path):
    first, second = distances
    assert first["log_a"] == pytest.approx(1) and first["log_b"] == pytest.approx(2)
    assert first["power_r2"] < first["log_r2"] == pytest.approx(1)
    assert second["power_a"] == pytest.approx(3)
    assert second["power_b"] == pytest.approx(0.5)
    assert second["log_r2"] < second["power_r2"] == pytest.approx(1)
    result_files.write(tmp_path / "kept.csv", distances)
    assert result_files.read(tmp_path / "kept.csv") == distances


def test_a_file_has_no_columns_of_what_was_not_measured(tmp_path):
    rows = sweep_rows(tmp_path / "sweep")
    result_files.write(tmp_path / "kept.csv", rows)
    header = (tmp_path / "kept.csv").read_text().splitlines()[0].split(",")
    assert "high_rate_updates" in header
    assert not {*result_files.FITS, "alpha"} & set(header)
    assert result_files.read(tmp_path / "kept.csv") == rows


def test_the_fits_are_shown_by_batch_size(distances):
    names = "figure2a figure2b"
    page = page_with(names, {"figure2b": distances})
    # A fifth of the regime has the first rate.
    cells = f"128 | 1 | 4,680 | 2.000 | 1.000 | {distances[0]['power_r2']:.3f} |"
    assert f"\n| {cells}" in page
    assert "better than the power law for 1 of 2 batch sizes" in page
    steepest = distances[1]["log_b"] / 2
    assert f"The largest slope is {steepest:.2f} times the smallest one." in page
    assert "Not run: `python train.py --flagfile=configs/scaled/figure2a.cfg`" in page
    both = page_with(names, dict.fromkeys(names.split(), distances))
    assert f"\n| figure2a | {cells}" in both
    assert "\nfigure2b: The logarithm" in both and "Not run" not in both
    everything = results.all_results({"own": distances}, {})
    assert result_figures.findings("own", distances) in everything
    assert "| slope |" in everything


def test_seeds_of_a_sweep_share_a_line(distances):
    other = [row | {"seed": 2, "log_b": row["log_b"] + 2} for row in distances]
    line = result_tables.distances(distances + other)[0]
    assert line["seeds"] == "1, 2" and line["slope"] == "3.000 ± 1.414"


def test_a_sweeps_accuracies_are_compared_as_in_the_paper(tmp_path):
    rows = sweep_rows(tmp_path / "sweep")  # 2.56 %, and 81.92 % for the larger batch.
    page = page_with("figure1", {"figure1": rows})
    assert "| 4,096 | 1 | 81.92 | 32 | 22,400 |" in page
    assert "\nNot every batch size has a lower accuracy" in page
    small, large = rows
    swapped = [small | {"accuracy": 0.9}, large]
    page = page_with("figure1", {"figure1": swapped})
    assert "\nEach batch size has a lower accuracy" in page
    page = page_with("figure3", {"figure3": rows})
    assert "the larger ones differs by +79.36 points." in page
    # A single batch size says nothing.
    assert page_with("figure1", {"figure1": rows[:1]}).count("accuracy") == 1


def test_a_landscape_is_kept_with_what_it_was_made_by(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(result_files, "FOLDER", tmp_path / "results")
    run_dir = write_landscape(tmp_path / "run", "--batch_size=1024", "--seed=3")
    assert results.main(["collect", str(run_dir), "--name=alpha_f1"]) == 0
    rows = result_files.read(tmp_path / "results" / "alpha_f1.csv")
    assert rows == result_runs.collect([run_dir], "abc")
    measured = json.loads((run_dir / "landscape.json").read_text())
    assert [row["alpha"] for row in rows] == [2.0, 1.9]
    for row in rows:
        assert row["hardware"] == result_files.hardware(measured["hardware"])
        assert f"keras {measured['versions']['keras']}" in row["versions"]
        assert row["commit"] == measured["commit"]
        # The seed is in a column, as of a training.
        assert row["seed"] == 3
        flagfile = "configs/scaled/alpha_f1.cfg"
        assert row["command"] == f"python train.py --flagfile={flagfile}"
    lines = capsys.readouterr().out.splitlines()
    cells = "2.000 ± 0.010 (R² 0.9999) | 1.900 ± 0.020 (R² 0.9995)"
    assert f"| F1, MNIST, 1,024, 100 | 3 | {cells} |" in lines
    page = page_with("alpha_f1 alpha_resnet20", {"alpha_f1": rows})
    assert cells in page
    assert "Not run: `python train.py --flagfile=configs/scaled/alpha_resnet20" in page
    everything = results.all_results({"alpha_f1": rows}, {})
    assert "### alpha_f1: F1, MNIST, at initialization\n" in everything


def test_a_landscape_of_an_earlier_version_says_what_is_unknown(tmp_path):
    run_dir = write_landscape(tmp_path / "run")
    file = run_dir / "landscape.json"
    measured = json.loads(file.read_text())
    for name in ("seed", "settings", "commit", "versions", "hardware"):
        del measured[name]
    file.write_text(json.dumps(measured))
    rows = result_runs.collect([run_dir], "abc")
    assert {row["commit"] for row in rows} == {"abc"}
    shown = result_tables.section(rows).splitlines()
    assert shown[1:4] == [
        "- hardware: not known",
        "- versions: not known",
        "- commit: `abc`",
    ]


def test_landscapes_of_several_seeds_have_a_line_each(tmp_path):
    folders = [
        write_landscape(tmp_path / str(seed), f"--seed={seed}") for seed in (1, 2)
    ]
    rows = result_runs.collect(folders, "abc")
    table = result_tables.landscapes([rows])
    assert "| 1 | 2.000" in table and "| 2 | 2.000" in table


def test_a_landscape_is_refused_beside_a_training_and_before_it_is_measured(
    tmp_path, capsys
):
    landscape = write_landscape(tmp_path / "landscape")
    training = tmp_path / "training"
    write_training(settings_of("--batch_size=512", f"--run_dir={training}"), 0.9)
    begun = write_landscape(tmp_path / "begun")
    (begun / "landscape.json").unlink()
    damaged = write_landscape(tmp_path / "damaged")
    (damaged / "landscape.json").write_text("{")
    for folders, message in (
        ([landscape, training], "got a landscape and a training, wanted one kind"),
        ([begun], "got no training that has ended"),
        ([damaged], "landscape.json is not a readable result"),
        ([landscape, landscape], "got seed 1 of distance 0.1 to 1 twice"),
    ):
        command = ["collect", *map(str, folders), "--name=x", "--commit=abc"]
        assert results.main(command) == 2
        assert message in capsys.readouterr().err
    assert not (result_files.FOLDER / "x.csv").exists()


def test_the_theory_is_beside_what_the_random_walk_recovers():
    row = {"alpha": 0.5, "exponent": 8.136, "exponent_error": 0.257}
    row["slope_without_shift"] = 5.4
    table = result_theory.tables("random_walk", [row])
    assert table.endswith("| 0.5 | 8.00 | 8.14 ± 0.26 | 5.40 |")


def test_ways_that_a_batch_does_not_have_are_empty():
    rows = [
        {"task": task, "batch": batch, "way": way, "weights": 0.25, "loss": loss}
        for task in ("quadratic", "digits")
        for batch, way, loss in (
            (32, "other order", 0.05),
            (32, "plain", 0.0),
            (32, "square root", 0.0),
            (768, "plain", 9.6),
        )
    ]
    tables = result_theory.tables("adam_invariance", rows)
    assert tables.count("| 768 | 0.250 (9.600) |  |") == 2
    assert "digits, weights apart (loss apart), other order 0.250 (0.050):\n" in tables
