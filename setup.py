"""Packages gbn-keras. The settings of the tools are in `pyproject.toml`."""

import pathlib
import runpy

from setuptools import find_packages, setup

HERE = pathlib.Path(__file__).parent

# The documentation site, and notebooks of the guides.
DOCS = [
    "mkdocs-material",
    "mkdocstrings[python]",
    "nbformat",
    # The drawing of the packages comes from `tests/test_walls.py`.
    "pytest",
]

setup(
    name="gbn-keras",
    version=runpy.run_path(str(HERE / "gbn_keras" / "version.py"))["__version__"],
    description=(
        "Ghost batch normalization and regime adaptation for large-batch training "
        "in Keras 3"
    ),
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["gbn_keras", "gbn_keras.*"]),
    py_modules=["gbn_quiet_start", "gbn_report", "gbn_train"],
    entry_points={
        "console_scripts": [
            "gbn-report = gbn_report:main",
            "gbn-train = gbn_train:main",
        ]
    },
    package_data={
        "gbn_keras": ["py.typed"],
        "gbn_keras.training.report": ["page.html"],
    },
    install_requires=[
        "absl-py",
        # Version 4 leaves a file that another process has locked as it is.
        "filelock>=4",
        # tensorflow-datasets imports it to prepare data, but does not require it.
        "importlib_resources",
        "jinja2",
        # The trainer uses internals of Keras (the symbolic build, an optimizer's sum
        # over replicas). These versions are tested.
        "keras>=3.12,<3.16",
        "keras-tuner",
        "markupsafe",
        "matplotlib",
        "pandas",
        "scikit-learn",
        "scipy",
        # Without it every trial of keras-tuner fails, but it is not required there.
        "tensorboard",
        "tensorflow",
        "tensorflow-datasets",
    ],
    extras_require={
        "docs": DOCS,
        "test": [
            *DOCS,
            "hypothesis",
            "jax",
            "mypy",
            "playwright",
            "pre-commit",
            "pydot",
            "pytest-xdist",
            "ruff",
            # To build a wheel and test it without the package index.
            *("setuptools>=68", "wheel"),
            # PyPI's build for Linux includes several GB of CUDA. Pinned so that pip
            # accepts the build without CUDA (2.13.0+cpu) and prefers no newer one. Find
            # it with --extra-index-url=https://download.pytorch.org/whl/cpu.
            "torch==2.13.0",
        ],
        "cuda": ["tensorflow[and-cuda]"],
    },
)
