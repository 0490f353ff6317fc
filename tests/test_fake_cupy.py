"""The CuPy that is not one is as narrow as CuPy: what it takes was looked up there."""

import cupy_functions
import fake_cupy
import numpy as np
import pytest


@pytest.fixture
def cupy():
    with fake_cupy.installed() as module:
        yield module


REFUSED = {
    "a function that CuPy lacks": lambda x: np.nanquantile(x, 0.5),
    "an argument that CuPy lacks": lambda x: np.sum(x, initial=1.0),
    "an argument of another name": lambda x: np.argsort(x, stable=True),
    "a reduction by a ufunc": lambda x: np.maximum.accumulate(x),
    "an array of NumPy": lambda x: x + np.ones(3),
    "one as a condition": lambda x: np.where(x > 1, np.ones(3), 0.0),
    "one to write to": lambda x: np.add(x, x, out=np.zeros(3)),
    "a number of NumPy's in an array": lambda x: np.where(True, 1.0, 2.0) * x,
    "conversion": np.asarray,
    "a list": lambda x: np.array([x, x]),
}


@pytest.mark.parametrize("call", REFUSED.values(), ids=REFUSED)
def test_what_cupy_refuses_is_refused(cupy, call):
    x = cupy.asarray(np.arange(3.0))
    with pytest.raises((TypeError, NotImplementedError)):
        call(x)


def test_the_list_is_that_of_cupy_where_it_is_installed():
    cupy = pytest.importorskip("cupy", reason="CuPy's names are compared where it is installed")
    first = cupy_functions.LIST.read_text(encoding="utf-8").splitlines()[0]
    if first != f"# CuPy {cupy.__version__}":
        pytest.skip(f"the list is of another version: {first}")
    assert cupy_functions.listing(cupy) == cupy_functions.read()
