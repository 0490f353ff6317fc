"""Kinds of arrays that are not NumPy's: the one table of them, and how to come and go.

CuPy answers NumPy's protocols; SciPy's functions ask none, and its ufuncs CuPy does not know.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np

HOMES = {"cupy": "cupyx.scipy"}  # the root of an array type's module -> what has SciPy's modules


def at_home(function: Callable[..., Any], module: str) -> Callable[..., Any]:
    """The function, which is in scipy.<module>; for arrays with a home, the one of that name there.

    Raises: TypeError for arrays of a kind without a home, unless the function is a ufunc, which
    asks them by NumPy's protocol; NotImplementedError where the home has no such function.
    """
    name = function.__name__.lstrip("_")
    by_protocol = isinstance(function, np.ufunc)

    def run(*args: Any, **options: Any) -> Any:
        for x in args:
            kind = type(x)
            home = HOMES.get(kind.__module__.partition(".")[0])
            if home is not None:
                there = getattr(import_module(f"{home}.{module}"), name, None)
                if there is None:
                    raise NotImplementedError(
                        f"{home}.{module} has no {name}; bring its arguments to NumPy first."
                    )
                return there(*args, **options)
            if not by_protocol and hasattr(x, "shape") and not isinstance(x, PLAIN):
                raise TypeError(
                    f"scipy.{module}.{name} takes NumPy arrays, not {kind.__name__}; convert it, "
                    f"or add the home of its kind to {__name__}.HOMES."
                )
        return function(*args, **options)

    run.__name__ = function.__name__
    return run


PLAIN = (np.ndarray, np.generic)


def module(name: str) -> Any:
    """The module of a kind, by its name in the table. Raises: ImportError."""
    if name not in HOMES:
        raise ImportError(f"{name!r} is none of {sorted(HOMES)}.")
    return import_module(name)


def devices() -> str:
    """What CuPy or, without it, the driver sees."""
    try:
        cupy = module("cupy")
        return f"{cupy.cuda.runtime.getDeviceCount()} seen by CuPy {cupy.__version__}"
    except Exception as error:  # no CuPy, no driver, no device: each in its own way
        reason = type(error).__name__
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return "none seen"
    seen = done.stdout.strip().splitlines()
    return f"{seen[0]}, but no usable CuPy ({reason})" if seen else "none seen"


def is_away(x: Any) -> bool:
    """Whether x is an array of a kind that has a home."""
    return type(x).__module__.partition(".")[0] in HOMES


def module_of(x: Any) -> Any:
    """The module that makes arrays of x's kind: NumPy, for all that has no home."""
    name = type(x).__module__.partition(".")[0]
    return import_module(name) if name in HOMES else np


def to_host(x: Any) -> Any:
    """x as NumPy has it: its entries copied, if it is away; else np.asarray."""
    return module_of(x).asnumpy(x) if is_away(x) else np.asarray(x)


def home(x: Any) -> Any:
    """x itself, or what NumPy has of it if it is away; of no axis, a NumPy scalar."""
    return to_host(x)[()] if is_away(x) else x


def beside(x: Any, like: Any) -> Any:
    """x as an array where `like` is; x itself, if it is there."""
    if is_away(like):
        return x if is_away(x) else module_of(like).asarray(np.asarray(x))
    return home(x)


def own(x: Any) -> Any:
    """A copy of an array that may be overwritten: NumPy's, or one that is away; else x itself."""
    return x.copy() if isinstance(x, np.ndarray) or is_away(x) else x


def real_array(x: Any) -> Any:
    """x, or what np.asarray makes of what is no array."""
    return x if is_away(x) else np.asarray(x)


def empty_beside(shape: Any, dtype: Any, like: Any) -> Any:
    """An array of any content where `like` is."""
    return module_of(like).empty(shape, dtype)


def zeros_beside(shape: Any, dtype: Any, like: Any) -> Any:
    """An array of zeros where `like` is."""
    return module_of(like).zeros(shape, dtype)


def of_lanes(examples: Any) -> list[Any] | None:
    """Arrays like which several of each of these, side by side, are to be: of numbers too, as these
    meet the others then. None where arrays of two kinds are among them: several cannot meet.
    """
    away = next(filter(is_away, examples), None)
    if away is None:
        return list(examples)
    if any(np.ndim(x) and not is_away(x) for x in examples):
        return None
    return [x if is_away(x) else away for x in examples]


def spread(x: Any, shape: Any, like: Any) -> Any:
    """np.broadcast_to(x, shape); of a number, where `like` is. x may be traced."""
    if is_away(like) and not np.ndim(x):
        return x * module_of(like).ones(shape, x.dtype)
    return np.broadcast_to(x, shape)


def put(total: Any, at: Any, x: Any) -> None:
    """total[at] += x, wherever either is."""
    total[at] += beside(x, total)
