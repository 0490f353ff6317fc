"""Arrays come from and go to PyTorch and JAX without copies, and a missing GPU is said so."""

import functools
import os
import subprocess
import sys

import fake_cupy
import numpy as np
import pytest

import revgrad as rg
from revgrad import interop


def test_torch_and_back_without_a_copy():
    torch = pytest.importorskip("torch")
    given = {"w": torch.arange(6.0).reshape(2, 3), "n": 3, "g": torch.ones(2, requires_grad=True)}
    found = interop.from_dlpack(given)
    assert type(found["w"]) is np.ndarray and found["w"].dtype == np.float32 and found["n"] == 3
    assert type(found["g"]) is np.ndarray
    found["w"][0, 0] = 7
    assert given["w"][0, 0] == 7
    again = interop.to_torch(found)
    again["w"][1, 1] = -1
    assert found["w"][1, 1] == -1 and again["n"] == 3
    frozen = np.zeros(3)
    frozen.setflags(write=False)
    assert interop.to_torch(frozen).tolist() == [0, 0, 0]


def test_jax_and_back():
    jax = pytest.importorskip("jax")
    found = interop.from_dlpack((jax.numpy.arange(3.0), np.ones(2)))
    assert type(found[0]) is np.ndarray and found[0].tolist() == [0, 1, 2]
    again = interop.to_jax({"x": np.ones(3, np.float32)})
    assert isinstance(again["x"], jax.Array) and float(again["x"].sum()) == 3


def test_trained_on_what_torch_gave():
    torch = pytest.importorskip("torch")
    x = interop.from_dlpack(torch.linspace(-1, 1, 8, dtype=torch.float64))
    loss = lambda w, _, x: np.sum((x * w["a"] - 2 * x) ** 2)
    trained = rg.train(loss, {"a": np.zeros(())}, rg.Momentum(0.1), [x] * 30)
    assert abs(float(interop.to_torch(trained)["a"]) - 2) < 0.1


def test_a_gpu_that_is_not_there_is_said_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(RuntimeError, match="CuPy is not installed; pip install"):
        interop.on_gpu({"w": np.zeros(3)})
    with fake_cupy.installed() as cupy:
        cupy.cuda.runtime.count = 0
        with pytest.raises(RuntimeError, match="sees no GPU"):
            interop.on_gpu(np.zeros(3))


def test_there_and_back():
    with fake_cupy.installed() as cupy:
        there = interop.on_gpu({"w": np.arange(3.0), "rate": 0.1})
        assert type(there["w"]) is cupy.ndarray and there["rate"] == 0.1
        here = interop.on_cpu(there)
        assert type(here["w"]) is np.ndarray and here["w"].tolist() == [0, 1, 2]


def test_cupy_has_what_the_fake_takes():
    real = pytest.importorskip("cupy")
    for name in fake_cupy.KNOWN:
        functools.reduce(getattr, name.split("."), real)
    for name in (*fake_cupy.METHODS, "get", "set", "tolist", "tobytes", "fill", "flags"):
        assert hasattr(real.ndarray, name)
    of_graphs = (
        "MemoryPool.malloc", "Stream.begin_capture", "Stream.end_capture", "Graph.launch", "Memory",
        "using_allocator", "set_pinned_memory_allocator",
    )  # fmt: skip
    for name in of_graphs:
        functools.reduce(getattr, name.split("."), real.cuda)
    for name in ("may_share_memory", "full", "empty", "get_default_pinned_memory_pool"):
        assert hasattr(real, name)


def test_nothing_here_touches_cupy_until_it_is_asked_to(tmp_path):
    """Installed or not, whole or broken: it is no matter of the CPU's."""
    (tmp_path / "cupy.py").write_text("raise SystemError('cupy was imported')", encoding="utf-8")
    code = """
import numpy as np
import revgrad as rg
loss = lambda w, _, x: np.sum((x * w - 2 * x) ** 2)
run = lambda rate: loss(rg.train(loss, np.zeros(3), rg.Momentum(rate), [np.ones(3)] * 9), None, 1.0)
step = rg.compile(lambda x: np.tanh(x) * 2)
print(rg.grad(run)(0.1) < 0, step(np.ones(3))[0] == step(np.ones(3))[0])
try:
    rg.interop.on_gpu(np.zeros(3))
except SystemError as error:
    print(error)
"""
    path = os.pathsep.join([str(tmp_path), os.path.dirname(os.path.dirname(rg.__file__))])
    settings = os.environ | {"PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, "-c", code], env=settings, capture_output=True, text=True, cwd=tmp_path
    )
    assert done.stdout.split() == ["True", "True", "cupy", "was", "imported"], done.stderr
