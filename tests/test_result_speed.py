"""The tables of speed are made from what the benchmarks wrote, and by nothing else."""

import json
import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
sys.path.append(str(ROOT / "benchmarks"))

import result_files  # noqa: E402
import result_speed  # noqa: E402
import results  # noqa: E402
import side_by_side  # noqa: E402

LAYERS = [
    {
        "shape": [64, 8],
        "virtual_batch_size": size,
        "layer": layer,
        "milliseconds": milliseconds,
        "ratio": milliseconds / 8,
        "peak_megabytes": None if layer == "copy" else 31.4,
    }
    for size in (16, 8)
    for layer, milliseconds in (("Keras", 8.0), ("ghosts", 2.04), ("copy", 1.0))
]


def content(command, rows):
    facts = {"processor": "Fast 3", "instruction_sets": ["AVX2"], "cores": 2}
    return {
        "command": command,
        "commit": f"{'0123456789' * 4}-changed",
        "environment": facts | {"versions": {"keras": "3.99"}},
        "rows": rows,
    }


@pytest.mark.parametrize(
    "words, command",
    [
        (["/x/layer_speed.py", "--jit"], "layer_speed.py --jit"),
        (["data_speed.py", "--data_dir=/secret"], "data_speed.py --data_dir=DIR"),
        (["data_speed.py", "--data_dir", "/secret"], "data_speed.py --data_dir=DIR"),
        (["a.py", "--json", "x", "--rounds", "5", "--jit"], "a.py --rounds=5 --jit"),
        (["a.py", "--json=x", "--picture=y"], "a.py"),
    ],
)
def test_a_file_names_the_command_without_folders_of_a_machine(words, command):
    assert side_by_side.command(words) == f"python benchmarks/{command}"


def test_what_a_benchmark_wrote_is_kept_and_shown(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(result_files, "FOLDER", tmp_path / "results")
    file = tmp_path / "layer.json"
    monkeypatch.setattr(sys, "argv", ["layer_speed.py", "--rounds=5", f"--json={file}"])
    side_by_side.write_json(str(file), LAYERS)
    assert results.main(["keep", str(file), "--name=speed_layer"]) == 0
    kept = result_speed.read_all(tmp_path / "results")
    assert kept == {"speed_layer": json.loads(file.read_text())}
    page = "<!-- results: speed_layer -->\n<!-- end of results -->\n"
    filled = results.filled(page, {}, kept, "page.md")
    assert "- command: `python benchmarks/layer_speed.py --rounds=5`\n" in filled
    assert "| 64x8, ghosts of 16 | 8.0 (1.00) | 2.0 (0.26) | 1.0 (0.12) |" in filled
    assert "| 64x8, ghosts of 8 | 31 | 31 |  |" in filled
    everything = results.all_results({}, kept)
    assert "### speed_layer\n" in everything
    assert "Not run: `python benchmarks/layer_speed.py --jit`" in everything


def test_figures_of_another_benchmark_are_refused(tmp_path, capsys):
    file = tmp_path / "figures.json"
    for text, message in (
        (json.dumps(content("python benchmarks/layer_speed.py --jit", [])), "--jit`,"),
        (json.dumps({"rows": []}), "got no file that a benchmark's --json wrote"),
        ("[]", "got no file that a benchmark's --json wrote"),
        ("nothing", "got no file that a benchmark's --json wrote"),
    ):
        file.write_text(text)
        assert results.main(["keep", str(file), "--name=speed_layer"]) == 2
        assert message in capsys.readouterr().err
    assert not (result_files.FOLDER / "figures.json").exists()


def test_rows_of_several_kinds_are_several_tables_and_what_they_share_is_above():
    rows = [
        {"network": "f1", "batch_size": 4096, "seconds": {"one": 2.5, "two": 1234.5}},
        {"network": "f1", "batch_size": 128, "seconds": {"one": 0.0321, "two": None}},
        {"micro_batch_size": 512, "is_whole": False},
    ]
    assert result_speed.tables("speed_micro_batches", rows) == (
        "All: network f1.\n\n"
        "| batch size | seconds, one | seconds, two |\n|---|---|---|\n"
        "| 4,096 | 2.5 | 1,234 |\n| 128 | 0.0321 |  |\n\n"
        "| micro batch size | is whole |\n|---|---|\n| 512 | False |"
    )


def test_kills_are_counted_by_precision():
    rows = [
        {"precision": "float32", "kills": [["at random", "x"]] * 3, "different": []},
        {
            "precision": "float32",
            "kills": [["half written", "x"], ["at random", "x"]],
            "different": ["loss"],
        },
        {"precision": "mixed_bfloat16", "kills": [], "different": []},
    ]
    *_, first, second = result_speed.tables("kills", rows).splitlines()
    assert first == "| float32 | 2 | 4 | 1 | 1 |"
    assert second == "| mixed_bfloat16 | 1 | 0 | 0 | 0 |"


def test_the_machine_and_the_commit_are_told():
    found = content("python benchmarks/layer_speed.py", LAYERS)
    lines = result_speed.section("speed_layer", found).splitlines()
    assert lines[1:4] == [
        "- hardware: Fast 3 (AVX2), 2 cores",
        "- versions: keras 3.99",
        "- commit: `012345678-changed`",
    ]
    found["commit"] = "gbn_keras 0.1.0"
    assert "- commit: `gbn_keras 0.1.0`\n" in result_speed.section("speed_layer", found)
