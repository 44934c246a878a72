"""Every table of results is made from kept run directories, and none by hand."""

import json
import math
import pathlib
import re
import sys

import pytest
from conftest import settings_of
from run_directories import write_search, write_study, write_training

ROOT = pathlib.Path(__file__).parent.parent
sys.path.append(str(ROOT / "benchmarks"))

import result_files  # noqa: E402
import result_runs  # noqa: E402
import result_tables  # noqa: E402
import results  # noqa: E402
import stretch_curve  # noqa: E402
from experiment import arm_directory  # noqa: E402

from gbn_keras.training.errors import UsageError  # noqa: E402

DOCS = sorted((ROOT / "docs").glob("*.md"))
STUDY = "python train.py --flagfile=configs/paper/table1_f1_mnist.cfg"


def text_of(page):
    return (ROOT / page).read_text(encoding="utf-8")


def typed_rows(page):
    """The rows of tables that have decimals and that nothing generates."""
    rows = results.BLOCK.sub("", text_of(page)).splitlines()
    return [row for row in rows if row.startswith("|") and re.search(r"\d\.\d", row)]


def test_the_pages_are_what_the_kept_results_give():
    pages = results.pages()
    assert set(pages) == {"RESULTS.md", *results.PAGES}
    for page, text in pages.items():
        assert (ROOT / page).read_bytes().decode() == text, page


@pytest.mark.parametrize("page", sorted({*results.PAGES} - {"docs/speed.md"}))
def test_no_row_of_accuracies_is_typed(page):
    assert typed_rows(page) == []


def test_no_figure_of_speed_is_typed():
    page = text_of("docs/speed.md")
    rows = results.BLOCK.sub("", page).splitlines()
    assert not [row for row in rows if row.startswith("|") and re.search(r"\d", row)]
    assert "<!-- results: speed_layer -->" in page


@pytest.mark.parametrize("page", DOCS, ids=[page.name for page in DOCS])
def test_a_typed_table_of_figures_is_in_a_section_with_its_command(page):
    text = results.BLOCK.sub("", page.read_text(encoding="utf-8"))
    for section in re.split(r"^#+ ", text, flags=re.M):
        command = re.search(r"`(?:\w+=\w+ )*(?:python|pytest) [^`]+`", section)
        prose = re.sub(r"`[^`]*`", "", section)
        rows = re.findall(r"^\|.*\d(?:\.\d| %).*$", prose, flags=re.M)
        assert command or not rows, rows


def test_the_same_training_by_other_commands_has_the_same_bits():
    groups = result_files.read_all(result_files.FOLDER)
    twins = {"table1_mnist_50": "", "as_published_mnist_50": "as ours: "}
    twins["where_it_turns_mnist"] = "50 epochs: "
    for arm in ("SB", "LB", "+LR", "+GBN"):
        for seed in (1, 2, 3):
            found = [
                (row["accuracy"], row["loss"])
                for name, start in twins.items()
                for row in groups[name]
                if (row["arm"], row["seed"]) == (start + arm, seed)
            ]
            assert len(found) == 3
            assert len(set(found)) == 1


def test_the_kept_results_are_compact_and_name_no_folder_of_a_machine():
    files = sorted(result_files.FOLDER.iterdir())
    assert sum(file.stat().st_size for file in files) < 2e6
    for name, rows in result_files.read_all(result_files.FOLDER).items():
        for row in rows:
            assert not re.search(r"[ =]/|_dir=", row["command"]), name


def test_a_study_is_kept_whole(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(result_files, "FOLDER", tmp_path / "results")
    run_dir = write_study(tmp_path / "study")
    collect = ["collect", str(run_dir), "--name=mnist", "--commit=abc"]
    assert results.main(collect) == 0
    rows = result_files.read(tmp_path / "results" / "mnist.csv")
    assert len(rows) == 10
    assert rows == result_runs.collect([run_dir], "abc")
    for row in rows:
        folder = run_dir / row["arm"].lower().strip("+") / f"seed_{row['seed']}"
        result = json.loads((folder / "result.json").read_text())
        for name in ("accuracy", "loss", "updates", "samples", "wall_seconds"):
            assert row[name] == result[name]
        for name in ("batch_size", "epochs", "model"):
            assert row[name] == result["settings"][name]
        assert row["command"] == f"{STUDY} --seeds=2"
        facts = [row[name] for name in ("hardware", "versions", "commit")]
        assert facts == ["7 cores, GPU of the test", "keras 3.99", "abc"]
    shown = capsys.readouterr().out
    # Seed 1 is a point below the mean, seed 2 a point above.
    half = 12.706205 * math.sqrt(2) / math.sqrt(2)
    interval = f"{93.27 - half:.2f} to {93.27 + half:.2f}"
    assert f"| SB | 128 | 1, 2 | 93.27 ± 1.41 | {interval} | 98.27 | 1 |" in shown


def test_a_study_may_be_collected_before_it_is_finished(tmp_path):
    rows = result_runs.collect([write_study(tmp_path / "study", finished=7)], "abc")
    seeds = {}
    for row in rows:
        seeds.setdefault(row["arm"], []).append(row["seed"])
    assert seeds == {
        "SB": [1, 2],
        "LB": [1, 2],
        "+LR": [1],
        "+GBN": [1],
        "+RA": [1],
    }
    assert "| 1 to 2 | 93.27 ± 1.41 |" in result_tables.studies([rows])
    assert "| +LR | 4,096 | 1 | 93.55 |  | 97.55 |" in result_tables.section(rows)


def test_a_study_is_beside_the_papers(tmp_path):
    rows = result_runs.collect([write_study(tmp_path / "study")], "abc")
    *_, ours, wanted = result_tables.studies([rows]).splitlines()
    assert ours.startswith("| F1, MNIST, 50 epochs, 4096 / 128 | 2 | 93.27 ± 1.41 |")
    papers = "98.27 | 97.05 | 97.55 | 97.60 | 98.53"
    assert wanted == f"| the paper's F1, MNIST |  | {papers} |"


def test_a_training_that_diverged_is_kept(tmp_path):
    run_dir = write_study(tmp_path / "study")
    result = run_dir / "lb" / "seed_2" / "result.json"
    outcome = json.loads(result.read_text())
    del outcome["accuracy"], outcome["loss"]
    result.unlink()
    diverged = result.with_name("diverged.json")
    diverged.write_text(json.dumps(outcome | {"diverged": 5}))
    rows = result_runs.collect([run_dir], "abc")
    result_files.write(tmp_path / "kept.csv", rows)
    assert result_files.read(tmp_path / "kept.csv") == rows
    assert "| LB | 4,096 | 1, 2 | 92.05 |  | 97.05 | 1 |" in result_tables.section(rows)


@pytest.mark.parametrize(
    "flags, command",
    [
        ((), f"{STUDY} --seeds=2"),
        (("--seeds=1",), STUDY),
        (
            ("--epochs=7", "--seed=4"),
            "python train.py --mode=study --dataset=mnist --batch_size=4096 "
            "--epochs=7 --seed=4 --seeds=2",
        ),
    ],
)
def test_the_command_of_a_study_repeats_it(flags, command, tmp_path):
    run_dir = write_study(tmp_path / "study", *flags)
    assert result_runs.command_of(run_dir) == command


def test_single_trainings_of_one_command_are_an_arm(tmp_path):
    folders = [tmp_path / str(seed) for seed in (1, 2, 3)]
    for seed, folder in enumerate(folders, 1):
        flags = ("--batch_size=512", f"--seed={seed}", f"--run_dir={folder}")
        write_training(settings_of(*flags), 0.9)
    rows = result_runs.collect(folders, "abc")
    assert {row["command"] for row in rows} == {"python train.py --batch_size=512"}
    assert "| `--batch_size=512` | 512 | 1 to 3 |" in result_tables.section(rows)


def write_curve(folder, trainings):
    for arm, seed in trainings:
        run_dir = arm_directory(folder, arm) / f"seed_{seed}"
        own = stretch_curve.EXPERIMENT.flags("digits", arm, seed)
        settings = settings_of(*own, f"--run_dir={run_dir}")
        write_training(settings, 0.9 + seed / 100, examples=1536)


def test_a_stretch_curve_may_be_collected_before_it_is_finished(tmp_path):
    folder = tmp_path / "digits"
    write_curve(folder, [("stretch 2", 1), ("SB", 2), ("SB", 1)])
    rows = result_runs.collect([folder], "abc")
    assert [(row["arm"], row["seed"]) for row in rows] == [
        *(("SB", 1), ("SB", 2), ("stretch 2", 1))
    ]
    assert rows[0]["command"] == "python benchmarks/stretch_curve.py digits"
    shown = result_tables.findings(rows)
    assert "| SB | 2 | 91.50 ± 0.71 | 288 | 1 |  |" in shown
    assert "| stretch 2 | 1 | 91.00 |" in shown
    assert shown.endswith("less one deviation: 2.")


def test_what_trainings_do_not_share_is_a_column(tmp_path):
    write_curve(tmp_path / "digits", [("SB", 1), ("SB", 2)])
    rows = result_runs.collect([tmp_path / "digits"], "abc")
    rows[1]["versions"] = "keras 4"
    shown = result_tables.section(rows)
    assert "- commit: `abc`\n" in shown
    assert "- versions" not in shown
    assert shown.endswith("| keras 3.99, keras 4 |")


def test_folders_that_cannot_be_kept_are_refused(tmp_path, capsys):
    study = write_study(tmp_path / "study")
    search = write_search(tmp_path / "search")
    empty = write_study(tmp_path / "empty", finished=0)
    other = tmp_path / "other" / "digits"
    write_curve(other, [("SB", 1)])
    flags = other / "SB" / "seed_1" / "flags.cfg"
    flags.write_text(flags.read_text().replace("--epochs=6", "--epochs=7"))
    for folders, message in (
        ([study, study], "got seed 1 of SB twice"),
        ([search], "got --mode=tune"),
        ([empty], "got no training that has ended"),
        ([tmp_path], "got neither a run directory nor"),
        ([other], "--epochs=7 there, --epochs=6 here"),
    ):
        command = ["collect", *map(str, folders), "--name=x", "--commit=abc"]
        assert results.main(command) == 2
        assert message in capsys.readouterr().err
    assert not (result_files.FOLDER / "x.csv").exists()


def test_a_training_that_knows_its_commit_keeps_it(tmp_path):
    study = write_study(tmp_path / "study")
    result = study / "lb" / "seed_2" / "result.json"
    own = "0123456789" * 4
    result.write_text(json.dumps(json.loads(result.read_text()) | {"commit": own}))
    rows = result_runs.collect([study], "abc")
    commits = {(row["arm"], row["seed"]): row["commit"] for row in rows}
    assert commits.pop(("LB", 2)) == own
    assert set(commits.values()) == {"abc"}
    assert "| `012345678`, `abc` |" in result_tables.section(rows)


def test_hardware_is_told_as_far_as_it_is_known():
    old = {"machine": "x86_64", "cores": 2, "devices": ["CPU"]}
    new = old | {"processor": "Fast 3", "instruction_sets": ["AVX2", "AVX-512"]}
    assert result_files.hardware(old) == "x86_64, 2 cores, CPU"
    assert result_files.hardware(new) == "Fast 3 (AVX2, AVX-512), 2 cores, CPU"
    unknown = new | {"processor": "", "instruction_sets": [], "replicas": 2}
    assert result_files.hardware(unknown) == "x86_64, 2 cores, CPU, 2 replicas"


def test_files_from_before_a_column_are_read(tmp_path):
    file = tmp_path / "old.csv"
    rows = result_runs.collect([write_study(tmp_path / "study")], "abc")
    result_files.write(file, rows)
    lines = [line.rpartition(",")[0] for line in file.read_text().splitlines()]
    file.write_text("\n".join(lines) + "\n")
    assert rows[0]["high_rate_updates"] > 0
    assert result_files.read(file) == [
        row | {"high_rate_updates": None} for row in rows
    ]


def test_a_mark_is_filled_with_what_it_names(tmp_path):
    study = result_runs.collect([write_study(tmp_path / "study")], "abc")
    write_curve(tmp_path / "digits", [("SB", 1)])
    groups = {
        "study": study,
        "curve": result_runs.collect([tmp_path / "digits"], "abc"),
    }
    page = "# Page\n<!-- results: {} -->\nold\n<!-- end of results -->\nText\n"
    filled = results.filled(page.format("study"), groups, {}, "page.md")
    assert "old" not in filled
    assert filled.startswith("# Page\n") and filled.endswith("Text\n")
    assert results.filled(filled, groups, {}, "page.md") == filled
    assert result_tables.studies([study]) in filled
    for names, message in (
        ("studi", "got results of studi, wanted some of study, curve, speed_layer"),
        ("study curve", "got results of study curve, wanted studies only"),
    ):
        with pytest.raises(UsageError, match=message):
            results.filled(page.format(names), groups, {}, "page.md")
