"""The rule table: a row per primitive, both modes in the row. Importing fills the registry."""

from revgrad.rules import (
    contractions,
    elementwise,
    fft,
    linalg,
    linear,
    moving,
    nn,
    order,
    products,
    reduce,
    scans,
)

__all__ = [
    "contractions",
    "elementwise",
    "fft",
    "linalg",
    "linear",
    "moving",
    "nn",
    "order",
    "products",
    "reduce",
    "scans",
]
