"""Makes a Jupyter notebook of a guide.

    python guides/make_notebook.py guides/close_the_gap.py [--output=FILE.ipynb]

A guide is a Python file. Its docstring is the head, with one `Name: value` per line. A
string that stands alone at the top level is a Markdown cell. The code between two such
strings is a code cell. The documentation site uses the same cells.
"""

import argparse
import ast
import dataclasses
import pathlib

import nbformat

# The names that a head must have, in this order.
HEAD = (
    "Title",
    "Author",
    "Date created",
    "Last modified",
    "Description",
    "Accelerator",
)


@dataclasses.dataclass(frozen=True)
class Guide:
    """The parts of a guide.

    Args:
        head: Values of the head, by the names in `HEAD`.
        cells: Pairs `(kind, text)`, where `kind` is `"markdown"` or `"code"`.
    """

    head: dict[str, str]
    cells: list[tuple[str, str]]


def read_guide(source: str) -> Guide:
    """Splits the source of a guide into its head and its cells.

    Raises:
        ValueError: If the docstring does not have the names in `HEAD`, in that order.
    """
    tree = ast.parse(source)
    head = dict(
        map(str.strip, line.split(":", 1))
        for line in (ast.get_docstring(tree) or "").splitlines()
        if ":" in line
    )
    if tuple(head) != HEAD:
        raise ValueError(
            f"The docstring of a guide must name {', '.join(HEAD)}, each on its line, "
            f"like 'Title: ...'. Received: {', '.join(head) or 'none of them'}."
        )

    lines, cells = source.splitlines(), []

    def add(kind, text):
        if text.strip():
            cells.append((kind, text.strip()))

    code_begins = tree.body[0].end_lineno
    for statement in tree.body[1:]:
        if _is_text(statement):
            add("code", "\n".join(lines[code_begins : statement.lineno - 1]))
            add("markdown", statement.value.value)
            code_begins = statement.end_lineno
    add("code", "\n".join(lines[code_begins:]))
    return Guide(head, cells)


def to_notebook(guide: Guide) -> str:
    """The guide as the text of an `.ipynb` file. The same guide gives the same text.

    Raises:
        nbformat.ValidationError: If the result is not a valid notebook.
    """
    title = f"# {guide.head['Title']}\n\n{guide.head['Description']}"
    makers = {
        "markdown": nbformat.v4.new_markdown_cell,
        "code": nbformat.v4.new_code_cell,
    }
    cells = [
        makers[kind](text, id=f"cell-{number}")
        for number, (kind, text) in enumerate([("markdown", title), *guide.cells])
    ]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})
    nbformat.validate(notebook)
    return nbformat.writes(notebook) + "\n"


def main():
    """Writes the notebook and prints its file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("guide", type=pathlib.Path, help="the .py file")
    parser.add_argument(
        "--output", type=pathlib.Path, help="default: the guide's name with .ipynb"
    )
    arguments = parser.parse_args()
    output = arguments.output or arguments.guide.with_suffix(".ipynb")
    guide = read_guide(arguments.guide.read_text(encoding="utf-8"))
    output.write_text(to_notebook(guide), encoding="utf-8")
    print(output)


def _is_text(statement):
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )


if __name__ == "__main__":
    main()
