"""README, docs and guides: their code runs, and their links lead somewhere."""

import html
import importlib.util
import pathlib
import re
import shlex
import subprocess
import sys

import keras
import nbformat
import pytest
from absl import flags
from mkdocs.utils.yaml import yaml_load

import gbn_keras
import gbn_train

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCS = ROOT / "docs"
PAGES = [ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "RESULTS")]
PAGES += sorted(DOCS.glob("*.md"))

spec = importlib.util.spec_from_file_location("hooks", DOCS / "hooks.py")
hooks = importlib.util.module_from_spec(spec)
spec.loader.exec_module(hooks)

# The guides' code is tested in test_guides.py.
GUIDES = [ROOT / "guides" / f"{name}.py" for name in hooks.guides()]


def blocks(language, text=README):
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def by_name(page):
    return page.name


def anchors(page):
    """What a link to a page may name: headings, as GitHub and the site write them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", text).lower().replace(" ", "-") for text in headings}


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_the_code_of_a_page_runs(page, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # The code may write files.
    fit = keras.Model.fit

    def short_fit(model, *arguments, epochs=1, **options):
        return fit(model, *arguments, epochs=min(epochs, 2), **options)

    # The README trains for 96 epochs.
    monkeypatch.setattr(keras.Model, "fit", short_fit)
    codes = blocks("python", page.read_text(encoding="utf-8"))
    assert codes or page.name not in ("README.md", "your_model.md")
    for code in codes:
        assert len(code.strip().splitlines()) <= 12
        exec(compile(code, page.name, "exec"), {})


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_the_program_takes_the_flags_of_a_pages_commands(page, monkeypatch):
    monkeypatch.chdir(ROOT)  # The flagfiles are named from here.
    text = page.read_text(encoding="utf-8")
    for command in re.findall(r"python (train\.py [^\n`&]*)", text):
        flags_given = shlex.split(command.replace("NAME", "figure1"))
        if "--help" not in flags_given:
            # The data of the reader is not here.
            gbn_train.parse([*flags_given, "--download"])


@pytest.mark.parametrize("page", [*PAGES, *GUIDES], ids=by_name)
def test_the_links_of_a_page_lead_somewhere(page):
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    for link in links:
        if not link.startswith("https://"):
            file, _, anchor = link.partition("#")
            target = page.parent / file if file else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


def test_every_page_and_guide_is_in_the_navigation():
    def leaves(entry):
        if isinstance(entry, str):
            return [entry]
        entries = entry.values() if isinstance(entry, dict) else entry
        return [leaf for one in entries for leaf in leaves(one)]

    with (ROOT / "mkdocs.yml").open(encoding="utf-8") as file:
        found = leaves(yaml_load(file)["nav"])
    assert len(found) == len(set(found))
    pages = {page.name for page in DOCS.glob("*.md")} | {"all_results.md"}
    assert set(found) == pages | {f"guides/{guide.stem}.md" for guide in GUIDES}


def test_the_readme_is_read_in_a_minute():
    assert len(README.splitlines()) <= 150


def test_the_check_runs_the_readmes_test_command():
    commands = [line for block in blocks("sh") for line in block.splitlines()]
    tests = [line for line in commands if line.endswith("pytest")]
    assert len(tests) == 1
    check = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "README.md" in check
    assert "mkdocs build --strict" in check


def test_the_commands_of_the_start_page_are_the_readmes():
    start = blocks("sh", (DOCS / "index.md").read_text(encoding="utf-8"))
    assert set(blocks("sh")) < set(start)


def test_the_page_of_the_program_names_every_flag_with_its_meaning():
    page = hooks.fill((DOCS / "program.md").read_text(encoding="utf-8"))
    rows = re.findall(r"^\| `--(\w+)` \| (.*?) \| (.+) \|$", page, re.MULTILINE)
    known = {f.name: f for f in flags.FLAGS.get_flags_for_module(gbn_train)}
    assert len(rows) == len(known)
    for name, default, meaning in rows:
        assert known[name].help.split()[-1] in meaning
        if default not in ("", "on", "off"):
            assert default == f"`{known[name].default}`"
    # As the file groups them, a heading each.
    assert list(hooks.flag_groups())[:3] == ["Mode and folder", "What", "Regime"]
    assert "Other" not in hooks.flag_groups()


def test_the_page_for_contributors_draws_every_package():
    page = hooks.fill((DOCS / "contributing.md").read_text(encoding="utf-8"))
    found = re.search(r'<pre class="mermaid">(.*?)</pre>', page, re.DOTALL)[1]
    drawing = html.unescape(found)
    for folder in (ROOT / "gbn_keras").rglob("__init__.py"):
        name = ".".join(folder.parent.relative_to(ROOT / "gbn_keras").parts)
        assert f'["{name or "method"}<br>' in drawing
    # What the trainer reaches through the networks is not drawn.
    assert "training_model --> networks" in drawing
    assert "training --> kernels" not in drawing


def test_the_reference_has_all_that_the_package_exports():
    page = hooks.fill((DOCS / "reference.md").read_text(encoding="utf-8"))
    found = re.findall(r"^::: gbn_keras\.(\w+)$", page, re.MULTILINE)
    assert set(gbn_keras.__all__) - {"__version__"} <= set(found)


@pytest.mark.parametrize("guide", GUIDES, ids=by_name)
def test_the_notebook_command_makes_a_valid_notebook(guide, tmp_path):
    output = tmp_path / "guide.ipynb"
    command = [sys.executable, ROOT / "guides" / "make_notebook.py", guide]
    subprocess.run([*command, f"--output={output}"], check=True, capture_output=True)
    notebook = nbformat.read(output, as_version=4)
    nbformat.validate(notebook)
    # Nothing is lost: the code cells together are the guide's code.
    code = "\n".join(x.source for x in notebook.cells if x.cell_type == "code")
    kept = {line for line in code.splitlines() if line.strip()}
    assert kept <= set(guide.read_text(encoding="utf-8").splitlines())
    assert sum(x.cell_type == "markdown" for x in notebook.cells) > 5
    compile(code, guide.name, "exec")


def test_a_guide_without_its_head_is_refused():
    with pytest.raises(ValueError, match="Received: Title"):
        hooks.make_notebook.read_guide('"""\nTitle: A guide\n"""\n')
