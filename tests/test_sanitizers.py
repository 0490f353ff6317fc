"""The kernel tests pass in a build with sanitizers, and in one that Cython checks."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import revgrad

ROOT = Path(__file__).parent.parent
SANITIZED = "-O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all"
CHOSEN = ["test_kernel.py", "test_fused.py", "test_fixed.py"]
# what compiles C by itself, starts Pythons, or repeats what the compiled kernel has no part in
LEFT_OUT = "not in_c and not reference and not missing_kernel and not serves"


def runtime(name):
    """Path of a compiler's run-time library; skips where there is none."""
    compiler = shutil.which("gcc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("sanitizers are tried with gcc on Linux")
    found = subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True)
    if not Path(found.stdout.strip()).is_absolute():
        pytest.skip(f"this gcc has no {name}")
    return found.stdout.strip()


def built(folder, **variables):
    """A copy of the package in `folder`, its extension built with these variables."""
    pytest.importorskip("Cython", reason="Cython is needed to build the extension")
    if not (ROOT / "setup.py").exists():
        pytest.skip("the sources are needed to build the extension")
    leave = shutil.ignore_patterns("*.so", "*.pyd", "__pycache__", "exact.c")
    shutil.copytree(Path(revgrad.__file__).parent, folder / "revgrad", ignore=leave)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "tests", folder / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    done = subprocess.run(
        command, cwd=folder, env=os.environ | variables, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def run_tests(folder, *more, **variables):
    """Run the chosen tests on the copy in `folder`."""
    settings = {
        "HYPOTHESIS_PROFILE": "dev",
        "REVGRAD_THREADS": "1",
        "PYTHONPATH": str(folder),
    } | variables
    probe = "import revgrad._ext.exact as e, pytest, sys; assert sys.argv[1] in e.__file__; "
    code = probe + "sys.exit(pytest.main(sys.argv[2:]))"
    files = [f"tests/{name}" for name in CHOSEN]
    return subprocess.run(
        [sys.executable, "-c", code, str(folder), *files, "-x", "-s", "-k", LEFT_OUT, *more],
        cwd=folder, env=_without_ci(os.environ | settings), capture_output=True, text=True,
        timeout=600,
    )  # fmt: skip


def _without_ci(environment):
    """With CI=true the run under sanitizers took six times as long, with equal results."""
    return {name: value for name, value in environment.items() if name != "CI"}


@pytest.mark.slow
def test_kernel_tests_pass_with_address_and_undefined_behaviour_sanitizers(tmp_path):
    preload = f"{runtime('libasan.so')} {runtime('libubsan.so')}"
    folder = built(tmp_path, CFLAGS=SANITIZED, LDFLAGS="-fsanitize=address,undefined")
    variables = {"LD_PRELOAD": preload, "ASAN_OPTIONS": "detect_leaks=0", "PYTHONMALLOC": "malloc"}
    done = run_tests(folder, **variables)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    # and a planted fault is caught: a word written beyond the stack
    wild = "import numpy as np; from revgrad._ext import exact, fused; f = exact.Fused(" \
           "np.array([[fused.SCALE, 0, -1, -1, -1, 0, 0]], np.int32), [], [], " \
           "np.array([0, 64]), np.zeros(1, np.int32), 0, False); " \
           "f.variable(0, np.zeros(64, np.int64), 0); " \
           "f.buffer(0, np.full(64, 2**32 - 1, np.uint32), exact.Ratios(1, 65536, 64), False); " \
           "f.words(0, np.zeros(8, np.uint16), 0, 0); f.run(0, 1)"  # fmt: skip
    caught = subprocess.run(
        [sys.executable, "-c", wild], cwd=folder, capture_output=True, text=True,
        env=os.environ | variables | {"PYTHONPATH": str(folder)},
    )  # fmt: skip
    assert caught.returncode != 0 and "AddressSanitizer" in caught.stderr


@pytest.mark.slow
def test_kernel_tests_pass_in_a_checked_build(tmp_path):
    done = run_tests(built(tmp_path, REVGRAD_CHECKED="1"))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


@pytest.mark.slow
def test_a_build_without_multiversioning_passes(tmp_path):
    folder = built(tmp_path, CFLAGS="-DREVGRAD_BASELINE_ONLY")
    done = run_tests(folder)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
