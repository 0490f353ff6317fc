"""Settings of the whole suite: environment, hypothesis profiles, data that may be absent."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Before NumPy: two threads everywhere, so that tests may lower the number and large machines do
# not spend their time on waking threads for small matrices.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "2")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

settings.register_profile("ci", max_examples=200, derandomize=True, deadline=None, print_blob=True)
settings.register_profile("dev", max_examples=20, deadline=None, print_blob=True)
settings.register_profile(
    "deep",
    max_examples=10_000,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))


@pytest.fixture(scope="session")
def mnist_dir():
    """Folder of the four official MNIST files below `REVGRAD_DATA`; skips where it is absent."""
    folder = Path(os.environ.get("REVGRAD_DATA", "")) / "mnist"
    if not os.environ.get("REVGRAD_DATA") or not folder.is_dir():
        pytest.skip("MNIST is absent: set REVGRAD_DATA to the folder that holds mnist/")
    return folder
