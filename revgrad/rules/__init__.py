"""The rule table: a row per primitive, both modes in the row. Importing fills the registry."""

import sys

from revgrad.arrays import late
from revgrad.rules import (
    applied,
    borders,
    contractions,
    curves,
    elementwise,
    factorisations,
    fft,
    indexing,
    linalg,
    linear,
    moving,
    nans,
    nn,
    norms,
    order,
    places,
    products,
    quantiles,
    reduce,
    scans,
    statistics,
)


def _load_special():
    """SciPy's functions have rules once SciPy is there: it is not imported on their behalf."""
    if "scipy.special" in sys.modules:
        from revgrad.rules import special  # noqa: F401


late.append(_load_special)

__all__ = [
    "applied",
    "borders",
    "contractions",
    "curves",
    "elementwise",
    "factorisations",
    "fft",
    "indexing",
    "linalg",
    "linear",
    "moving",
    "nans",
    "nn",
    "norms",
    "order",
    "places",
    "products",
    "quantiles",
    "reduce",
    "scans",
    "statistics",
]
