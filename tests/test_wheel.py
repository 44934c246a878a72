"""What is installed from a wheel works where there is no checkout."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

import gbn_train

pytestmark = pytest.mark.cluster

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Runs a command beside an installation from a wheel, far from the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    here, site = folder / "here", folder / "site"
    here.mkdir()

    def run(*command):
        # The tests' own environment has all that the package depends on. TensorFlow
        # says as much as for a newcomer.
        environment = {**os.environ, "PYTHONPATH": str(site)}
        environment.pop("TF_CPP_MIN_LOG_LEVEL", None)
        done = subprocess.run(
            list(map(str, command)),
            cwd=here,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert not done.returncode, done.stderr
        return done

    # Building leaves files beside the sources, and would pack what it once left there.
    sources = folder / "sources"
    shutil.copytree(ROOT / "gbn_keras", sources / "gbn_keras")
    for file in filter(pathlib.Path.is_file, ROOT.iterdir()):
        shutil.copy(file, sources)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    run(*pip, "wheel", sources, "--no-deps", "--no-build-isolation", "-w", folder)
    (wheel,) = folder.glob("*.whl")
    run(*pip, "install", wheel, "--no-deps", "--target", site)
    return run, here, site


def test_the_package_is_whole(installed):
    run, _, site = installed
    packages = {path.relative_to(ROOT) for path in ROOT.glob("gbn_keras/**/*.py")}
    assert packages == {p.relative_to(site) for p in site.glob("gbn_keras/**/*.py")}
    assert (site / "gbn_keras" / "py.typed").exists()
    code = "import importlib.util as u; print(u.find_spec('gbn_keras').origin)"
    file = run(sys.executable, "-c", code).stdout.strip()
    assert pathlib.Path(file).is_relative_to(site)


def test_the_installed_command_does_what_train_py_does(installed, monkeypatch):
    run, here, site = installed
    command, ours = site / "bin" / "gbn-train", (sys.executable, ROOT / "train.py")
    assert run(command, "--help").stdout == run(*ours, "--help").stdout
    flags = ("--max_updates=2", "--batch_size=256", "--run_dir")
    done = run(command, *flags, "installed")
    # A process says nothing but this, to a newcomer too.
    assert done.stdout.startswith("batch 256 = 8 ghosts of 32\n")
    assert done.stdout.splitlines()[-1].startswith("validation accuracy ")
    assert done.stderr == ""
    monkeypatch.chdir(here)
    # In this process, where TensorFlow has started already.
    assert gbn_train.main(["train.py", *flags, "ours"]) == 0
    results = []
    for name in ("ours", "installed"):
        result = json.loads((here / name / "result.json").read_text())
        settings = {k: v for k, v in result["settings"].items() if k != "run_dir"}
        measured = [result[k] for k in ("accuracy", "loss", "updates", "samples")]
        results.append([settings, measured])
    assert results[0] == results[1]
    assert results[0][1][2:] == [2, 512]
    version = result["versions"]["gbn_keras"]
    assert (site / f"gbn_keras-{version}.dist-info").exists()
