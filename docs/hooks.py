"""Generates the parts of the site that describe the source, when the site is built.

A page marks the place with a comment, such as `<!-- generated: flags -->`. `GENERATORS`
lists all names. Each guide becomes a page and a notebook, and `RESULTS.md`, which is in
no folder of the site, a page. Nothing here imports Keras or
TensorFlow.
"""

import ast
import html
import importlib.util
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from absl import flags  # noqa: E402

import gbn_train  # noqa: E402


def _module(file):
    """Imports a module that is in no package."""
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    # A dataclass looks for its module here.
    sys.modules.setdefault(file.stem, module)
    spec.loader.exec_module(module)
    return module


make_notebook = _module(ROOT / "guides" / "make_notebook.py")


def guides() -> dict[str, "make_notebook.Guide"]:
    """The guides, by the names of their files without the ending."""
    files = sorted((ROOT / "guides").glob("*.py"))
    return {
        file.stem: make_notebook.read_guide(file.read_text(encoding="utf-8"))
        for file in files
        if file.stem != "make_notebook"
    }


def guide_page(name: str, guide: "make_notebook.Guide") -> str:
    """The Markdown page of a guide."""
    head = guide.head
    texts = [
        f"# {head['Title']}",
        head["Description"],
        f"**Author:** {head['Author']}<br>\n"
        f"**Date created:** {head['Date created']}<br>\n"
        f"**Last modified:** {head['Last modified']}<br>\n"
        f"**Accelerator:** {head['Accelerator']}",
        f"Run it with `python guides/{name}.py`, or cell by cell as "
        f"[a notebook]({name}.ipynb).",
    ]
    for kind, text in guide.cells:
        texts.append(f"```python\n{text}\n```" if kind == "code" else text)
    return "\n\n".join(texts) + "\n"


def flag_groups() -> dict[str, list]:
    """The program's flags, grouped by the comment above them in `gbn_train.py`."""
    source = pathlib.Path(gbn_train.__file__).read_text(encoding="utf-8")
    known = flags.FLAGS.get_flags_for_module(gbn_train)
    by_name = {flag.name: flag for flag in known}
    lines, groups, group = source.splitlines(), {}, "Mode and folder"
    for statement in ast.parse(source).body:
        value = getattr(statement, "value", None)
        if not isinstance(value, ast.Call) or not value.args:
            continue
        name = getattr(value.args[0], "value", None)
        if name not in by_name:
            continue
        before = lines[statement.lineno - 2]
        if before.startswith("# "):
            group = before.removeprefix("# ").rstrip(".")
        groups.setdefault(group, []).append(by_name.pop(name))
    if by_name:  # Flags that are defined differently, for example in a loop.
        groups["Other"] = list(by_name.values())
    return groups


def flags_table() -> str:
    """All flags with default and meaning, in one table for each group."""
    texts = []
    for group, members in flag_groups().items():
        title, _, remark = group.partition(". ")
        rows = ["| flag | default | meaning |", "|---|---|---|"]
        for flag in members:
            meaning = _cell(_meaning(flag))
            rows.append(f"| `--{flag.name}` | {_default(flag)} | {meaning} |")
        texts.append("\n".join([f"### {title}", *([f"\n{remark}."] * bool(remark))]))
        texts.append("\n".join(rows))
    return "\n\n".join(texts)


def packages() -> str:
    """The package's folders, their lines and their imports: a drawing and a table."""
    walls = _module(ROOT / "tests" / "test_walls.py")
    nodes = {name: {"files": 0, "lines": 0, "imports": set()} for name in walls.WALLS}
    for name, file in walls.MODULES.items():
        if not name:  # `__init__.py` of the package only exports names.
            continue
        own = nodes.setdefault(
            walls.folder(name), {"files": 0, "lines": 0, "imports": set()}
        )
        own["files"] += 1
        own["lines"] += len(file.read_text(encoding="utf-8").splitlines())
        own["imports"] |= {
            walls.folder(found.removeprefix("gbn_keras").removeprefix("."))
            for found in walls.imports(name)
            if found.startswith("gbn_keras")
        }
    for name, node in nodes.items():
        node["imports"] = {x for x in node["imports"] if x in nodes and x != name}

    drawing = ["flowchart TD"]
    for name, node in nodes.items():
        drawing.append(f'  {_node(name)}["{name}<br>{node["lines"]:,} lines"]')
    for name in nodes:
        arrows = sorted(_arrows(nodes, name))
        drawing += [f"  {_node(name)} --> {_node(found)}" for found in arrows]
    rows = ["| folder or file | files | lines | imports |", "|---|---|---|---|"]
    for name, node in nodes.items():
        found = ", ".join(f"`{x}`" for x in sorted(node["imports"])) or "nothing"
        rows.append(f"| `{name}` | {node['files']} | {node['lines']:,} | {found} |")
    picture = html.escape("\n".join(drawing))
    return f'<pre class="mermaid"><code>{picture}</code></pre>\n\n' + "\n".join(rows)


def reference() -> str:
    """The names that `gbn_keras` exports, for mkdocstrings."""
    return "\n\n".join(f"::: gbn_keras.{name}" for name in exported())


def exported() -> list[str]:
    """The names in `__all__` of `gbn_keras`, without importing it."""
    source = (ROOT / "gbn_keras" / "__init__.py").read_text(encoding="utf-8")
    lists = [
        node.value
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Assign | ast.AugAssign)
        and "__all__" in ast.unparse(node).split("=")[0]
    ]
    names = {name for found in lists for name in ast.literal_eval(found)}
    return sorted(names - {"__version__"}, key=str.lower)


GENERATORS = {"flags": flags_table, "packages": packages, "reference": reference}


def fill(markdown: str) -> str:
    """The page with its comments replaced by generated text.

    Raises:
        KeyError: If a comment names no generator.
    """
    return re.sub(
        r"<!-- generated: (\w+) -->", lambda found: GENERATORS[found[1]](), markdown
    )


def results_page() -> str:
    """The Markdown page of `RESULTS.md`."""
    text = (ROOT / "RESULTS.md").read_text(encoding="utf-8")
    # A link to a folder has no page to lead to.
    return text.replace("](docs/results)", "](results.md)").replace("](docs/", "](")


def on_files(files, config):
    """Adds the pages that are made. mkdocs calls it when it lists the site's files."""
    from mkdocs.structure.files import File

    files.append(File.generated(config, "all_results.md", content=results_page()))
    for name, guide in guides().items():
        page, notebook = guide_page(name, guide), make_notebook.to_notebook(guide)
        for ending, content in (("md", page), ("ipynb", notebook)):
            uri = f"guides/{name}.{ending}"
            files.append(File.generated(config, uri, content=content))
    return files


def on_page_markdown(markdown, page, config, files):
    """Fills a page, and turns links to sources into links to pages. For mkdocs."""
    if page.file.src_uri.startswith("guides/"):
        markdown = re.sub(r"\]\(\.\./docs/", "](../", markdown)
        return re.sub(r"\]\((\w+)\.py\)", r"](\1.md)", markdown)
    markdown = markdown.replace("](../RESULTS.md)", "](all_results.md)")
    return fill(re.sub(r"\]\(\.\./guides/(\w+)\.py\)", r"](guides/\1.md)", markdown))


def _meaning(flag):
    """The help of a flag, with the values of an enumeration in words."""
    text = " ".join(flag.help.split())
    values = getattr(flag.parser, "enum_values", None)
    if values is None:
        return text
    # absl writes them before the help: `<one|mirrored>: Devices that ...`.
    return f"One of {', '.join(values)}. {re.sub('^<[^>]*>: ', '', text)}"


def _cell(text):
    """The text, escaped for a cell of a table."""
    return html.escape(text, quote=False).replace("|", "\\|").replace("[", "\\[")


def _default(flag):
    if flag.default is None or flag.default == []:
        return ""
    if isinstance(flag.default, bool):
        return "on" if flag.default else "off"
    return f"`{flag.default}`"


def _node(name):
    """The name in a form that mermaid accepts."""
    return name.replace(".", "_")


def _arrows(nodes, name):
    """The imports of a folder, without those that it reaches through another one."""
    direct, indirect = nodes[name]["imports"], set()
    waiting = [x for found in direct for x in nodes[found]["imports"]]
    while waiting:
        found = waiting.pop()
        if found not in indirect:
            indirect.add(found)
            waiting += nodes[found]["imports"]
    return direct - indirect
