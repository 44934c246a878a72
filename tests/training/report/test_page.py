"""The report page: what it says of each kind of directory, and of mistakes."""

import dataclasses
import html
import html.parser
import json
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import types

import pandas as pd
import pytest
from conftest import settings_of
from matplotlib.figure import Figure
from run_directories import write_search, write_study, write_sweep, write_training

import gbn_train
from gbn_keras.training import study, trainer
from gbn_keras.training.report import page as report_page
from gbn_keras.training.report import report
from gbn_keras.training.report.summary import Summary, Table
from gbn_keras.training.run.run_directory import read_flags
from gbn_keras.training.settings import Settings

ROOT = pathlib.Path(gbn_train.__file__).parent


@pytest.fixture(scope="module")
def training(tmp_path_factory):
    """The directory of a real training, short as it is."""
    run_dir = tmp_path_factory.mktemp("page") / "run"
    flags = ("--batch_size=256", "--max_updates=12", "--weight_distance")
    settings = settings_of(*flags, f"--run_dir={run_dir}")
    trainer.train(settings, verbose=0)
    return run_dir


@pytest.fixture(scope="module")
def training_page(training):
    return page_of(training)


@pytest.fixture(scope="module")
def study_dir(tmp_path_factory):
    return write_study(tmp_path_factory.mktemp("page") / "study")


@pytest.fixture(scope="module")
def command(training, study_dir, tmp_path_factory):
    """The command on a training and a study, as Python runs its file."""
    file = tmp_path_factory.mktemp("command") / "page.html"
    python = [sys.executable, "-X", "importtime", str(ROOT / "gbn_report.py")]
    done = subprocess.run(
        [*python, str(training), str(study_dir), f"--output={file}"],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
    )
    imports, errors = set(), []
    for line in done.stderr.splitlines():
        if line.startswith("import time:"):
            imports.add(line.rpartition("|")[2].strip())
        else:
            errors.append(line)
    return types.SimpleNamespace(
        exit_code=done.returncode,
        output=done.stdout,
        errors="\n".join(errors),
        imports=imports,
        file=file,
    )


@pytest.fixture
def undrawn(monkeypatch):
    """Leaves out the drawing of pictures, which takes longer than all else."""
    monkeypatch.setattr(Figure, "savefig", lambda figure, file, **_: file.write(b"-"))


def page_of(*run_dirs, **options):
    return report.report_page(list(run_dirs), **options).read_text(encoding="utf-8")


def words(page):
    """The page's text as it is read."""
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", page)).split())


def rows(page):
    """The cells of every row of a table, by the row's head."""
    found = {}
    page = page.replace("&nbsp;", " ")
    for row in re.findall(r"<tr>(.*?)</tr>", page, re.DOTALL):
        head, *cells = re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row)
        found.setdefault(html.unescape(head), list(map(html.unescape, cells)))
    return found


class Elements(html.parser.HTMLParser):
    """The elements of a page: their names and attributes."""

    def __init__(self, page):
        super().__init__()
        self.found = []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))


def attributes(page, name):
    return [own[name] for _, own in Elements(page).found if name in own]


def test_a_trainings_page_has_plan_result_pictures_environment_and_flags(
    training, training_page
):
    page = training_page
    result = json.loads((training / "result.json").read_text())
    text = words(page)
    plan = (training / "plan.txt").read_text().splitlines()
    assert plan[0] == "batch 256 = 8 ghosts of 32"
    for line in plan:
        assert line in text
    assert rows(page)["this training"][1] == f"{100 * result['accuracy']:.2f}"
    pictures = [own["alt"] for tag, own in Elements(page).found if tag == "img"]
    assert [alt.split()[0] for alt in pictures] == ["Accuracy", "Distance"]
    for name, version in result["versions"].items():
        assert f"{name} {version}" in text
    for flag in (training / "flags.cfg").read_text().splitlines():
        assert flag in text
    assert "Unfinished" not in text


def test_the_pages_command_runs_the_same_again(training, training_page):
    code = re.search(r"<pre><code>(.*?)</code></pre>", training_page, re.DOTALL)
    # A shell joins the lines.
    python, *argv = shlex.split(html.unescape(code[1]).replace("\\\n", ""))
    assert (python, argv[0]) == ("python", "train.py")
    again = Settings(**gbn_train.parse(argv))
    result = json.loads((training / "result.json").read_text())
    before = Settings(**result["settings"])
    assert again.run_dir == f"{training}-again"
    same = dataclasses.replace(again, run_dir=before.run_dir)
    assert same.flagfile() == before.flagfile()


@pytest.mark.usefixtures("undrawn")
def test_the_command_names_the_folder_where_the_page_is_made(training, monkeypatch):
    monkeypatch.chdir(training)
    assert f"--run_dir={training}-again" in words(page_of(pathlib.Path()))


def test_a_studys_page_has_our_figures_beside_the_papers(study_dir):
    page = page_of(study_dir)
    table = rows(page)
    heads = ["batch", "accuracy %, 2 seeds", "paper %", "difference", "updates"]
    assert table[""][:5] == heads
    wanted = zip(
        study.ARMS,
        ("98.27", "97.05", "97.55", "97.60", "98.53"),
        ("−5.00", "−4.00", "−3.00", "−2.00", "−1.00"),
        strict=True,
    )
    for arm, published, difference in wanted:
        mean = float(published) + float(difference.replace("−", "-"))
        # Of two seeds, one less and one more.
        assert table[arm][1:4] == [f"{mean:.2f} ± 1.41", published, difference]
    assert "97.53 ± 1.41 % with all techniques" in words(page)
    for line in ("batch 128, plain batch normalization", "batch 4096 = 32 ghosts"):
        assert line in words(page)


@pytest.mark.usefixtures("undrawn")
def test_other_data_has_no_papers_figures(tmp_path):
    page = page_of(write_study(tmp_path / "study", "--train_examples=10000"))
    heads = rows(page)[""]
    assert "accuracy %, 2 seeds" in heads
    assert "paper %" not in heads and "98.27" not in page


@pytest.mark.usefixtures("undrawn")
def test_a_trainings_page_has_the_papers_table_if_it_has_the_network(study_dir):
    assert rows(page_of(study_dir / "ra" / "seed_1"))["accuracy %"][0] == "98.27"


def test_a_sweeps_page_has_each_batch_size(tmp_path):
    page = page_of(write_sweep(tmp_path / "sweep", "128,4096"))
    assert rows(page)["batch 128"][:2] == ["128", "2.56"]
    assert rows(page)["batch 4096"][:2] == ["4,096", "81.92"]
    assert "by epoch" in page and "by update" in page


def test_a_searchs_page_has_its_trials_also_where_it_was_moved(tmp_path):
    run_dir = write_search(tmp_path / "search").rename(tmp_path / "moved")
    page = page_of(run_dir)
    assert "Best of 3 trials: validation accuracy 93.00 %" in words(page)
    table = rows(page)
    assert [table[trial][0] for trial in "321"] == ["93.00", "92.00", "91.00"]
    assert [table[trial][-1] for trial in "321"] == ["0.3", "0.2", "0.1"]
    assert "learning rate 0.3" in words(page)


def test_a_landscapes_page_has_alpha(training, tmp_path):
    run_dir = shutil.copytree(training, tmp_path / "run")
    fit = {"alpha": 1.987, "error": 0.012, "r_squared": 0.9995}
    measured = {
        "network": "f1 on digits",
        "loss": 0.5,
        "weights_norm": 30.0,
        "directions": 100,
        "examples": 256,
        "fits": {"distance 0.1 to 10": fit},
        "paper": {"alpha": 2},
    }
    (run_dir / "landscape.json").write_text(json.dumps(measured))
    columns = ("distance", "deviation", "mean")
    points = pd.DataFrame({name: [0.1, 1, 10] for name in columns})
    points.to_csv(run_dir / "landscape.csv", index=False)
    page = page_of(run_dir)
    assert rows(page)["distance 0.1 to 10"] == ["1.987 ± 0.012", "2", "0.9995"]
    # That of the training is there, too.
    assert "this training" in rows(page)


@pytest.mark.parametrize(
    "finished, said",
    [(0, "0 of 10 trainings are finished"), (6, "6 of 10 trainings are finished")],
)
def test_an_unfinished_study_shows_what_is_there(finished, said, tmp_path):
    page = page_of(write_study(tmp_path / "study", finished=finished))
    assert f"Unfinished: {said}" in words(page)
    # The training that has begun has a plan and a curve.
    assert "<img" in page and "batch 128, plain" in page
    table = rows(page)
    if finished:
        assert table["SB"][4] == "2" and table["LB"][4] == "1"
    else:
        assert not table


def test_an_unfinished_training_shows_how_far_it_is(training, tmp_path):
    run_dir = shutil.copytree(training, tmp_path / "run")
    (run_dir / "result.json").unlink()
    page = page_of(run_dir)
    assert "Unfinished: 12 updates so far, validation accuracy" in words(page)
    assert "batch 256 = 8 ghosts of 32" in page and "<img" in page


@pytest.mark.parametrize("metrics", [None, ""])
@pytest.mark.parametrize("mode", ["train", "study", "sweep", "tune", "landscape"])
def test_a_directory_that_has_only_begun_is_unfinished(mode, metrics, tmp_path):
    flags = ("--batch_sizes=32,64", "--search=stretch:1,2", "--model=f1_digits")
    settings = settings_of(f"--mode={mode}", *flags, f"--run_dir={tmp_path}")
    (tmp_path / "flags.cfg").write_text(settings.flagfile())
    if metrics is not None:
        (tmp_path / "metrics.csv").write_text(metrics)
    assert "Unfinished: " in words(page_of(tmp_path))


def test_an_unfinished_search_shows_the_trials_that_are_finished(tmp_path):
    page = page_of(write_search(tmp_path / "search", trials=2, finished=False))
    assert "Unfinished: 2 trials are finished so far." in words(page)
    assert rows(page)["rate2"][0] == "92.00"


def test_the_page_needs_no_other_file_and_no_network(command):
    page = command.file.read_text(encoding="utf-8")
    elements = Elements(page).found
    assert not {"script", "iframe", "object"} & {tag for tag, _ in elements}
    sources = attributes(page, "src")
    assert sources and all(source.startswith("data:image/") for source in sources)
    links = {link for link in attributes(page, "href") if not link.startswith("#")}
    assert links == {"data:,", "https://arxiv.org/abs/1705.08741"}
    assert "url(" not in page and "@import" not in page


def test_names_are_text_whatever_they_are(tmp_path):
    run_dir = tmp_path / '<img src=x onerror="alert(1)">'
    write_training(settings_of("--model=f1_digits", f"--run_dir={run_dir}"), 0.5)
    flags = run_dir / "flags.cfg"
    evil = "<script>alert('$title &amp;')</script>"
    flags.write_text(flags.read_text().replace("=digits\n", f"={evil}\n"))
    page = page_of(run_dir)
    assert evil in words(page)
    assert not {"script"} & {tag for tag, _ in Elements(page).found}
    assert "onerror" not in {name for _, own in Elements(page).found for name in own}


def test_what_the_user_writes_is_text_wherever_it_stands():
    evil = "</title><b onclick=\"x\">&amp; '{{ 7 * 7 }}'</b>{%raw%}"
    one = Summary(
        run_dir=pathlib.Path("runs") / evil.replace("/", ""),
        **{"title": evil, "flags": evil, "unfinished": evil, "headlines": [evil]},
        **{"plan": {"": [evil], evil: [evil]}, "environment": {evil: [evil]}},
        tables=[Table(evil, {evil: {evil: evil}}, note=evil, corner=evil)],
        pictures={evil: Figure()},
    )
    for summaries, places in ([one], 20), ([one, one], 44):
        page = report_page.page(summaries)
        elements = Elements(page).found
        assert "b" not in {tag for tag, _ in elements}
        assert "onclick" not in {name for _, own in elements for name in own}
        # Whole, in titles, cells, attributes and so on.
        assert html.unescape(page).count(evil) == places
        assert attributes(page, "alt") == [evil] * len(summaries)


@pytest.mark.usefixtures("undrawn")
def test_several_directories_are_one_page_with_its_contents(
    training, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    study_dir = write_study(tmp_path / "study", finished=3)
    assert report.main([str(training), str(study_dir)]) == 0
    assert capsys.readouterr().out == "report.html\n"
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    anchors = [link[1:] for link in attributes(page, "href") if link[0] == "#"]
    assert anchors == [name for name in attributes(page, "id")] and len(anchors) == 2
    for read in (read_flags(training), read_flags(study_dir)):
        assert words(page).count(f"{read['model']} on {read['dataset']}: ") == 2


@pytest.mark.parametrize(
    "arguments, received",
    [
        ([], "run_or_study"),
        (["no/such"], "no/such: got no folder"),
        (["."], ".: got a folder without flags.cfg"),
        (["other"], "other/flags.cfg: got --mode=fly, wanted one of train, study"),
        (["run", "no/such"], "no/such: got no folder"),
        (["run", "--output=no/such/page.html"], "--output: no/such/page.html cannot"),
        (["run", "--colour=red"], "--colour=red"),
    ],
)
@pytest.mark.usefixtures("undrawn")
def test_a_mistake_is_one_line(
    arguments, received, training, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(training, "run", ignore=shutil.ignore_patterns("*.html"))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "flags.cfg").write_text("--mode=fly\n")
    assert report.main(arguments) == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: ") and said.err.count("\n") == 1
    assert received in said.err and not said.out
    assert not list(tmp_path.rglob("*.html*"))


def test_the_command_prints_where_the_page_is(command):
    assert command.exit_code == 0, command.errors
    assert command.output == f"{command.file}\n" and command.file.exists()
    assert "Warning" not in command.errors and "Traceback" not in command.errors


def test_the_command_imports_nothing_that_computes(command):
    assert "gbn_keras.training.report.report" in command.imports
    slow = {"keras", "tensorflow", "keras_tuner", "pandas", "scipy"}
    assert not slow & command.imports
