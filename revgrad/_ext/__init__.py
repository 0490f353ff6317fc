"""The compiled kernel, its plain twin or a GPU's: the one place that looks at the kind of array."""

from __future__ import annotations

import importlib
import os
from typing import Any

from revgrad._ext.homes import is_away

__all__ = ["kernel", "kernel_of", "settle", "tail_beside"]


def _load() -> Any:
    """The compiled kernel; the reference only where REVGRAD_KERNEL=reference asks for it."""
    wanted = os.environ.get("REVGRAD_KERNEL", "exact")
    if wanted not in ("exact", "reference"):
        raise ImportError(f"REVGRAD_KERNEL is {wanted!r}; set it to exact or reference.")
    try:
        return importlib.import_module(f"revgrad._ext.{wanted}")
    except ModuleNotFoundError as error:
        raise ImportError(
            "revgrad's compiled kernel is missing; build it with `pip install .` (or `python "
            "setup.py build_ext --inplace`), or set REVGRAD_KERNEL=reference for slow Python."
        ) from error


kernel = _load()


def kernel_of(x: Any) -> Any:
    """The kernel for arrays of x's kind."""
    return importlib.import_module("revgrad._ext.cuda") if is_away(x) else kernel


def settle(x: Any) -> None:
    """Wait for what was started where x is. Raises: what that should have raised, with `step`."""
    if is_away(x):
        kernel_of(x).settle()


def tail_beside(x: Any, tail: Any, keep: bool) -> Any:
    """The tail itself, or one whose top is where x is."""
    return kernel_of(x).Stack(tail, len(x), keep) if is_away(x) else tail
