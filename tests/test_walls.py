"""Each package imports only what is below it."""

import ast
import collections
import pathlib

import pytest

# Not by an import: the site's drawing comes from here, without TensorFlow.
PACKAGE = pathlib.Path(__file__).parent.parent / "gbn_keras"

# What each folder may import of this project, besides itself. `method` are the files
# beside `__init__.py`, which alone may import what it exports.
WALLS = {
    "method": {"kernels", "cut_ghosts", "replicas", "shares"},
    "kernels": set(),
    "cut_ghosts": {"kernels", "replicas"},
    "convert": {"method"},
    "networks": {"method", "convert"},
    "optimizers": {"method"},
    "analysis": {"method"},
    "large_batch": {"method", "replicas", "large_batch.backends"},
    "large_batch.backends": {"method", "replicas", "large_batch"},
    "resume": {"method"},
    "training.data": {"shares", "training.errors"},
    "training.run": {
        *("method", "analysis", "replicas", "resume"),
        *("training.errors", "training.settings", "training.plan"),
    },
    "training.report": {
        *("method", "analysis", "training.run"),
        *("training.errors", "training.settings"),
    },
    "training.cluster": {"training.errors"},
    "training.callbacks": {"training.errors", "training.plan"},
    "training.model": {
        *("method", "networks", "optimizers", "large_batch", "large_batch.backends"),
        *("resume", "training.data"),
        *("training.errors", "training.settings", "training.plan"),
    },
    "training": {
        *("method", "networks", "optimizers", "analysis", "large_batch", "resume"),
        *("training.data", "training.run", "training.report", "training.callbacks"),
        *("training.model", "training.cluster"),
    },
    "training.forecast": {
        *("method", "analysis", "training", "training.run", "training.model"),
        *("training.errors", "training.settings", "training.plan"),
    },
    "training.trained": {
        *("method", "analysis", "large_batch"),
        *("training", "training.data", "training.run", "training.report"),
        *("training.model", "training.errors", "training.settings"),
    },
    "training.search": {
        *("training", "training.run", "training.report", "training.callbacks"),
        *("training.model", "training.errors"),
        *("training.settings", "training.plan"),
    },
}
# Files with walls of their own: they stand below their folder, or above it.
FILES = {
    "_keras_internals": set(),
    "_tensorflow_internals": set(),
    "replicas": set(),
    "shares": set(),
    "training.errors": set(),
    "training.settings": set(),
    "training.plan": {
        *("method", "networks", "shares", "training.settings", "training.errors"),
    },
    # The modes.
    "training.program": {
        *("training", "training.report", "training.search"),
        *("training.trained", "training.forecast"),
        *("training.errors", "training.settings"),
    },
}
INTERNALS = ["_keras_internals", "_tensorflow_internals"]

# Whoever reads tables and draws them waits for no library that computes.
COMPUTES = {"tensorflow", "keras", "keras_tuner", "tensorflow_datasets"}
READS_TABLES = ["training.report", "training.run.tables", "training.run.run_directory"]


def modules():
    """The names of all modules, without the package's own."""
    for file in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(file.relative_to(PACKAGE).with_suffix("").parts)
        yield name.removesuffix("__init__").removesuffix("."), file


MODULES = dict(modules())


def imports(name):
    """What a module imports: modules of this project, and names of libraries."""
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for full in found:
            library, _, rest = full.partition(".")
            if library != "gbn_keras":
                yield library
            elif rest in MODULES:
                yield f"gbn_keras.{rest}"
            else:  # A name in a module.
                yield f"gbn_keras.{rest.rpartition('.')[0]}"


def folder(name):
    """To which entry of the tables above a module belongs."""
    if name in FILES:
        return name
    while name and name not in WALLS:
        name = name.rpartition(".")[0]
    return name or "method"


@pytest.mark.parametrize("name", [name for name in MODULES if name])
def test_a_module_imports_only_what_is_below_it(name):
    own = folder(name)
    allowed = {own, *WALLS.get(own, set()), *FILES.get(own, set()), *INTERNALS}
    if own.split(".")[-1] in ("training", "search", "trained", "forecast"):
        allowed |= set(FILES) - {"training.program"}
    ours = [x for x in imports(name) if x.startswith("gbn_keras")]
    found = {folder(x.removeprefix("gbn_keras").removeprefix(".")) for x in ours}
    assert found <= allowed


def test_the_report_reads_tables_without_what_computes():
    for name in MODULES:
        if any(name.startswith(reader) for reader in READS_TABLES):
            assert not COMPUTES & set(imports(name)), name


def test_no_folder_and_no_file_is_too_large_to_know():
    sizes = {name: len(file.read_text().splitlines()) for name, file in MODULES.items()}
    assert max(sizes.values()) <= 300
    folders = collections.Counter()
    for name, lines in sizes.items():
        folders[MODULES[name].parent] += lines
    assert max(folders.values()) <= 2000, folders
