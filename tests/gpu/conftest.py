"""The tests that need a GPU, which skip without one; `make test-gpu` runs them."""

import pytest

from revgrad import interop


@pytest.fixture(scope="session")
def cupy():
    """CuPy itself, where tests/fake_cupy.py is elsewhere."""
    try:
        interop.on_gpu(None)
    except RuntimeError as error:
        pytest.skip(str(error))
    import cupy

    return cupy


@pytest.fixture
def order():
    """The threads of a block go in the order that the device likes."""


def pytest_collection_modifyitems(items):
    for item in items:
        if "gpu" in item.path.parts:
            item.add_marker(pytest.mark.gpu)
