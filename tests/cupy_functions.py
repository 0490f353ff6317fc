"""What CuPy has of NumPy's functions: `python tests/cupy_functions.py` writes the list beside it.

CuPy can be imported without a GPU, which is all that this needs. fake_cupy.py refuses what is not
in the list, and arguments that the function there does not have.
"""

import inspect
from functools import reduce
from pathlib import Path

import numpy as np

LIST = Path(__file__).with_suffix(".txt")
PLACES = ("", "linalg.", "fft.", "lib.stride_tricks.")
UNKNOWN = "(*args, **kwargs)"


def listing(cupy):
    """{name: signature, or "ufunc"} of what NumPy and this CuPy both have."""
    found = {}
    for place in PLACES:
        here, there = (reduce(getattr, place.split(".")[:-1], x) for x in (np, cupy))
        for name in dir(here):
            mine, its = getattr(here, name, None), getattr(there, name, None)
            if name.startswith("_") or isinstance(mine, type) or not callable(mine) or its is mine:
                continue
            if callable(its) and not isinstance(its, type):
                found[place + name] = "ufunc" if isinstance(mine, np.ufunc) else _signature(its)
    return found


def _signature(function):
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return UNKNOWN
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in parameters]
    text = str(inspect.Signature([p.replace(default=None) if _odd(p) else p for p in bare]))
    return text if "<" not in text else UNKNOWN


def _odd(parameter):
    """Whether a default is an object, of which its place is all that matters."""
    plain = (bool, int, float, str, tuple, type(None))
    return parameter.default is not parameter.empty and not isinstance(parameter.default, plain)


def read():
    """The list, as `listing` gives it; ufuncs have no signature."""
    lines = LIST.read_text(encoding="utf-8").splitlines()
    return dict(line.split(" ", 1) for line in lines if not line.startswith("#"))


if __name__ == "__main__":
    import cupy

    lines = [f"{name} {signature}" for name, signature in sorted(listing(cupy).items())]
    LIST.write_text("\n".join([f"# CuPy {cupy.__version__}", *lines]) + "\n", encoding="utf-8")
