"""The program takes flags and flagfiles, and answers each mistake in one line."""

import dataclasses
import os
import pathlib
import subprocess
import sys

import pytest

import gbn_train
from gbn_keras.training.settings import Settings

ROOT = pathlib.Path(gbn_train.__file__).parent
CONFIGS = sorted(ROOT.glob("configs/**/*.cfg"))


def test_the_flags_are_the_fields_of_the_settings():
    fields = {field.name for field in dataclasses.fields(Settings)}
    assert set(gbn_train.parse(["train.py"])) == fields


def test_training_then_evaluating_by_the_run_directory_alone(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    flags = ("--batch_size=256", "--epochs=2", "--stretch=1", "--run_dir=run")
    assert gbn_train.main(["train.py", *flags]) == 0
    trained = capsys.readouterr()
    lines = trained.out.splitlines()
    assert lines[:3] == [
        "batch 256 = 8 ghosts of 32",
        "learning rate 0.03 x sqrt(8) = 0.0849",
        "2 epochs = 12 updates (small batch: 2 epochs = 96 updates)",
    ]
    assert "Epoch 1/2" in trained.out
    assert lines[-1].startswith("validation accuracy ")
    assert trained.err == ""

    assert gbn_train.main(["train.py", "--mode=evaluate", "--run_dir=run"]) == 0
    # The same figure as at the end of the training.
    assert lines[-1].startswith(capsys.readouterr().out.splitlines()[-1])


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_a_config_says_what_it_claims_and_how_it_is_run(config):
    lines = config.read_text().splitlines()
    assert lines[0].startswith("# ")
    command = f"python train.py --flagfile={config.relative_to(ROOT).as_posix()}"
    assert any(command in line for line in lines)
    gbn_train.parse(["train.py", f"--flagfile={config}", "--download"])


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize(
    "lines",
    [
        ["--batch_size=512", "--seed=7"],
        ["# A comment.", "--batch_size=512", "--seed=7"],
        ["--flagfile={inner}", "--seed=7"],
    ],
)
def test_a_flagfile_of_any_editor_is_read(lines, newline, tmp_path):
    inner, outer = tmp_path / "inner.cfg", tmp_path / "outer.cfg"
    inner.write_text("--batch_size=512\n", "utf-8-sig", newline=newline)
    text = "".join(f"{line.format(inner=inner)}\n" for line in lines)
    outer.write_text(text, "utf-8-sig", newline=newline)
    values = gbn_train.parse(["train.py", "--batch_size=64", f"--flagfile={outer}"])
    assert (values["batch_size"], values["seed"]) == (512, 7)


def test_a_flagfile_in_another_encoding_is_refused_in_a_line(tmp_path, capsys):
    (tmp_path / "flags.cfg").write_text("--seed=7\n", "utf-16")
    flags = ["train.py", f"--flagfile={tmp_path / 'flags.cfg'}"]
    assert gbn_train.main(flags) == 2
    error = capsys.readouterr().err
    assert "not UTF-8 text" in error and error.count("\n") == 1


BAD_FLAGS = [
    (["--mode=fly"], "mode", "fly"),
    (["--precision=float8"], "precision", "float8"),
    (["--jit=maybe"], "jit", "maybe"),
    (["--batch_size=many"], "batch_size", "many"),
    (["--seeds=0"], "seeds", "0"),
    (["--seed=-1"], "seed", "-1"),
    (["--max_updates=-5"], "max_updates", "-5"),
    (["--bach_size=512"], "bach_size", "batch_size"),
    (["--flagfile=no/such.cfg"], "flagfile", "no/such.cfg"),
    (["512"], "512", "--name=value"),
    (["--dataset=cifar100", "--data_dir=no/such"], "dataset", "no/such"),
    (["--dataset="], "dataset", "''"),
    (["--batch_size=0"], "batch_size", "0"),
    (["--batch_size=5000"], "batch_size", "5000"),
    (["--virtual_batch_size=-8"], "virtual_batch_size", "-8"),
    (["--batch_size=64", "--virtual_batch_size=65"], "virtual_batch_size", "65"),
    (["--model=vgg99"], "model", "vgg99"),
    (["--l2=-1"], "l2", "-1"),
    (["--model=alexnet"], "model", "(8, 8, 1)"),
    (["--mode=study", "--batch_size=64", "--model=vgg"], "model", "(8, 8, 1)"),
    (["--model=resnet45"], "model", "resnet45"),
    (["--gradient_noise=much"], "gradient_noise", "much"),
    (["--gradient_noise=-2"], "gradient_noise", "-2"),
    (["--train_examples=-1"], "train_examples", "-1"),
    (["--train_examples=9999"], "train_examples", "9999"),
    (["--mode=sweep"], "batch_sizes", "''"),
    (["--mode=sweep", "--batch_sizes=32,many"], "batch_sizes", "32,many"),
    (["--mode=sweep", "--batch_sizes=32,5000"], "batch_size", "5000"),
    (["--lr_scaling=cubic"], "lr_scaling", "cubic"),
    (["--stretch=0.5"], "stretch", "0.5"),
    (["--strategy=many"], "strategy", "many"),
    (["--replicas=-1"], "replicas", "-1"),
    (["--replicas=2"], "replicas", "2"),
    (["--strategy=multi_worker", "--replicas=2"], "replicas", "2"),
    (["--strategy=multi_worker"], "strategy", "TF_CONFIG"),
    (["--strategy=multi_worker", "--cluster=slurm"], "cluster", "SLURM"),
    (["--strategy=multi_worker", "--cluster=kubernetes"], "cluster", "TF_CONFIG"),
    (["--cluster=nomad"], "cluster", "nomad"),
    (["--cluster_port=0"], "cluster_port", "0"),
    (["--strategy=tpu"], "tpu", "None"),
    (["--strategy=tpu", "--tpu=grpc://127.0.0.1:9"], "tpu", "127.0.0.1:9"),
    (["--micro_batch_size=-1"], "micro_batch_size", "-1"),
    (["--batch_size=64", "--micro_batch_size=48"], "micro_batch_size", "48"),
    (["--memory_budget=-1"], "memory_budget", "-1"),
    (["--profile=100"], "profile", "100"),
    (["--mode=evaluate", "--run_dir=no/such"], "run_dir", "no/such"),
    (["--mode=evaluate"], "run_dir", "None"),
    (["--mode=study"], "batch_size", "32"),
]


@pytest.mark.parametrize("flags, name, received", BAD_FLAGS)
def test_a_mistake_is_one_line_and_exit_code_2(flags, name, received, capsys):
    assert gbn_train.main(["train.py", *flags]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    line = output.err.removesuffix("\n")
    assert "\n" not in line
    assert line.startswith("error: ")
    assert name in line and received in line


def test_a_mistake_in_the_flags_is_answered_before_tensorflow_is_imported(tmp_path):
    probe = (
        "import sys, gbn_train; code = gbn_train.main(sys.argv[1:]); "
        "sys.exit(99 if 'tensorflow' in sys.modules else code)"
    )
    flags = ["train.py", "--dataset=cifar100", f"--data_dir={tmp_path}"]
    done = subprocess.run(
        [sys.executable, "-c", probe, *flags],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=ROOT,
        env={**os.environ, "TFDS_DATA_DIR": ""},
    )
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    for expected in ("cifar100", str(tmp_path), "--data_dir", "--download"):
        assert expected in done.stderr


def test_help_names_every_flag():
    shown = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), "--help"],
        capture_output=True,
        text=True,
        timeout=300,
    ).stdout
    for field in dataclasses.fields(Settings):
        assert f"{field.name}: " in shown
