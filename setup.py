"""Packaging of gbn-keras; `pyproject.toml` holds the settings of the tools."""

import pathlib
import runpy

from setuptools import find_packages, setup

HERE = pathlib.Path(__file__).parent

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
    py_modules=["gbn_quiet_start", "gbn_train"],
    entry_points={"console_scripts": ["gbn-train = gbn_train:main"]},
    package_data={
        "gbn_keras": ["py.typed"],
        "gbn_keras.training.report": ["page.html"],
    },
    install_requires=[
        "absl-py",
        # Since 4 a process that finds a file locked leaves it as it is.
        "filelock>=4",
        # tensorflow-datasets imports it when it prepares data, but does not name it.
        "importlib_resources",
        "jinja2",
        # The trainer overrides and calls what Keras does not publish (the symbolic
        # build, an optimizer's sum over replicas): tried with these versions.
        "keras>=3.12,<3.16",
        "keras-tuner",
        "markupsafe",
        "matplotlib",
        "pandas",
        "scikit-learn",
        "scipy",
        # keras-tuner fails every trial without it, but does not name it.
        "tensorboard",
        "tensorflow",
        "tensorflow-datasets",
    ],
    extras_require={
        "test": [
            "hypothesis",
            "jax",
            "playwright",
            "pydot",
            "pytest",
            "pytest-xdist",
            "ruff",
            # A wheel is built and tried, without the index.
            *("setuptools>=68", "wheel"),
            # PyPI's build for Linux brings CUDA, several GB. Pinned, so that the build
            # without CUDA counts too (2.13.0+cpu), and not a newer one before it; pip
            # finds it by --extra-index-url=https://download.pytorch.org/whl/cpu.
            "torch==2.13.0",
        ],
        "cuda": ["tensorflow[and-cuda]"],
    },
)
