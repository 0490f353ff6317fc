"""The compiled kernel or its plain twin: the one place that looks at the kind of array."""

from __future__ import annotations

import importlib
import os
from typing import Any

__all__ = ["kernel"]


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
