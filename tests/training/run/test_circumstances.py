"""A result says which source made it, and on which processor."""

import re
import subprocess

from gbn_keras.training.planner import Planner
from gbn_keras.training.run import source
from gbn_keras.training.run.circumstances import circumstances
from gbn_keras.training.run.processor import processor
from gbn_keras.version import __version__

CPUINFO = """\
processor\t: 0
model name\t: A processor: fast
flags\t\t: fpu avx {}

processor\t: 1
model name\t: Another
flags\t\t: avx2 avx512f amx_tile
"""


def git(folder, *words):
    who = ("-c", "user.name=x", "-c", "user.email=x", "-c", "commit.gpgsign=false")
    command = ["git", "-C", folder, *who, *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def repository(folder, *tracked):
    (folder / "gbn_keras").mkdir()
    (folder / "gbn_keras" / "version.py").write_text("1")
    (folder / "train.py").write_text("1")
    git(folder, "init", "-q")
    git(folder, "add", *tracked)
    git(folder, "commit", "-qm", "x")
    return git(folder, "rev-parse", "HEAD").strip()


def test_the_processor_is_the_first_one_with_what_its_kernels_depend_on(tmp_path):
    cpuinfo = tmp_path / "cpuinfo"
    for flags, sets in (("", []), ("avx512f avx2 sse", ["AVX2", "AVX-512"])):
        cpuinfo.write_text(CPUINFO.format(flags))
        assert processor(cpuinfo) == {
            "processor": "A processor: fast",
            "instruction_sets": sets,
        }
    assert processor(tmp_path / "none")["instruction_sets"] == []


def test_the_commit_says_whether_the_source_has_changed(tmp_path):
    commit = repository(tmp_path, ".")
    assert source.commit_of(tmp_path) == commit
    (tmp_path / "notes").write_text("2")
    assert source.commit_of(tmp_path) == commit
    (tmp_path / "train.py").write_text("2")
    assert source.commit_of(tmp_path) == f"{commit}-changed"


def test_a_repository_of_something_else_is_not_the_source(tmp_path, monkeypatch):
    repository(tmp_path, "train.py")  # The package is not part of it.
    assert source.commit_of(tmp_path) is None
    monkeypatch.setattr(source, "commit_of", lambda root: None)
    source.commit.cache_clear()
    assert source.commit() == f"gbn_keras {__version__}"
    source.commit.cache_clear()


def test_a_training_keeps_the_circumstances_of_its_start(make_settings):
    found = circumstances(Planner(1536).plan(make_settings()))
    assert re.fullmatch(r"[0-9a-f]{40}(-changed)?|gbn_keras .*", found["commit"])
    assert {"processor", "instruction_sets", "cores"} <= found["hardware"].keys()
