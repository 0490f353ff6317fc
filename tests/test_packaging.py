"""sdist and wheel are whole: built apart from this tree, installed with nothing else, imported."""

import os
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from email.parser import HeaderParser
from importlib import metadata
from pathlib import Path

import pytest

import revgrad

ROOT = Path(__file__).parent.parent
CORE = {"numpy", "gmpy2", "optree", "threadpoolctl", "tqdm"}
EXTRAS = {"cuda12", "cuda13", "nvrtc", "examples", "test", "oracle", "bench", "docs"}
PROBE = """
import sys
import numpy as np
import revgrad as rg
from revgrad._ext import exact, reference
gradient = rg.grad(lambda x: np.sum(np.tanh(x) ** 2))(np.arange(3.0))
print(rg.__version__, rg.__file__, gradient.dtype)
"""


def run(*command, folder):
    """Standard output of a command run away from this tree; its errors are shown when it fails."""
    settings = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "REVGRAD_KERNEL")}
    done = subprocess.run(
        [str(part) for part in command], cwd=folder, env=settings, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def project():
    path = ROOT / "pyproject.toml"
    return tomllib.loads(path.read_text(encoding="utf-8"))["project"]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """(sdist, wheel), the wheel built from the sdist, each step in its own isolated environment."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--outdir", folder, ROOT, folder=folder)
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return sdist, wheel


def test_the_version_is_written_once(project):
    assert revgrad.__version__ == metadata.version("revgrad") == project["version"]


def test_dependencies_are_the_core_ones(project):
    assert {requirement.split(">=")[0] for requirement in project["dependencies"]} == CORE
    assert set(project["optional-dependencies"]) == EXTRAS


def test_the_licence_is_named(project):
    assert project["license"] == "MIT"
    assert (ROOT / "LICENSE").read_text(encoding="utf-8").startswith("MIT License")


def test_the_changelog_keeps_a_heading_for_bits():
    assert "\n### Bits\n" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_sdist_has_the_sources_and_nothing_made(built):
    sdist, _ = built
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {
        "pyproject.toml", "setup.py", "LICENSE", "README.md", "CHANGELOG.md", "Makefile",
        "revgrad/py.typed", "revgrad/_ext/exact.pyx", "revgrad/_ext/ratio.h", "tests/conftest.py",
    }  # fmt: skip
    assert wanted <= names
    assert not [name for name in names if name.endswith((".c", ".so", ".pyd", ".pyc"))]


@pytest.mark.slow
def test_the_wheel_has_the_package_and_nothing_else(built):
    _, wheel = built
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        header = next(name for name in names if name.endswith(".dist-info/METADATA"))
        described = HeaderParser().parsestr(archive.read(header).decode())
    package = {name for name in names if name.startswith("revgrad/")}
    assert {name.split("/")[0] for name in names - package} == {header.split("/")[0]}
    kernels = {name for name in package if name.startswith("revgrad/_ext/exact.cpython")}
    assert len(kernels) == 1 or os.name == "nt"
    wanted = {"py.typed", "_ext/exact.pyx", "_ext/exact.pyi", "_ext/ratio.h", "_ext/reference.py"}
    assert {f"revgrad/{name}" for name in wanted} <= package
    assert not [name for name in package if name.endswith(".c")]
    assert described["License-Expression"] == "MIT" and described["Requires-Python"] == ">=3.11"


@pytest.mark.slow
def test_the_wheel_works_in_an_empty_environment(built, project, tmp_path):
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    run(python, "-m", "pip", "install", "--quiet", built[1], folder=tmp_path)
    version, file, dtype = run(python, "-W", "error", "-c", PROBE, folder=tmp_path).split()
    assert version == project["version"] and dtype == "float64"
    assert Path(file).is_relative_to(tmp_path.resolve())
