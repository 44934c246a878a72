"""The README's code runs, and its commands are those of the project's check."""

import pathlib
import re

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_readmes_code_runs():
    codes = blocks("python")
    assert codes
    for code in codes:
        assert len(code.strip().splitlines()) <= 12
        exec(compile(code, "README.md", "exec"), {})


def test_the_check_runs_the_readmes_test_command():
    commands = [line for block in blocks("sh") for line in block.splitlines()]
    tests = [line for line in commands if line.endswith("pytest")]
    assert len(tests) == 1
    assert "README.md" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
