"""The code and the links of README and docs work; the check runs the command."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]


def blocks(language, text=README):
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_code_of_a_page_runs(page):
    codes = blocks("python", page.read_text(encoding="utf-8"))
    assert codes or page.name not in ("README.md", "your_model.md")
    for code in codes:
        assert len(code.strip().splitlines()) <= 12
        exec(compile(code, page.name, "exec"), {})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_links_of_a_page_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#\s]+)\)", page.read_text(encoding="utf-8"))
    for link in links:
        assert link.startswith("https://") or (page.parent / link).exists(), link


def test_the_readme_is_read_in_a_minute():
    assert len(README.splitlines()) <= 150


def test_the_check_runs_the_readmes_test_command():
    commands = [line for block in blocks("sh") for line in block.splitlines()]
    tests = [line for line in commands if line.endswith("pytest")]
    assert len(tests) == 1
    assert "README.md" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
