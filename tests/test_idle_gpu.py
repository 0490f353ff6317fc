"""CuPy itself takes every call, on a GPU that does nothing: see idle_gpu.py."""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import nvrtc
import pytest


def test_cupy_takes_every_call():
    if importlib.util.find_spec("cupy") is None:
        pytest.skip("CuPy is not installed: pip install cupy-cuda12x (no GPU is needed)")
    nvrtc.loaded()
    for tool in ("cc", "nm"):
        if shutil.which(tool) is None:
            pytest.skip(f"no {tool} on the path")
    script = Path(__file__).with_name("idle_gpu.py")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-5000:]
    assert done.stdout.startswith("0 of ")
