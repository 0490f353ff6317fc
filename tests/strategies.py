"""Strategies that several test modules share; those that users would want are revgrad's own."""

import numpy as np
import optree
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from revgrad.testing import factors, float_arrays, optimizers, trees


def bits(tree):
    """What must be equal of two trees that are the same to the bit."""
    leaves, structure = optree.tree_flatten(tree)
    return structure, [(type(x), np.shape(x), np.asarray(x).tobytes()) for x in leaves]


shapes = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
LAYOUTS = ("C", "F", "strided", "reversed")
layouts = st.sampled_from(LAYOUTS)
dtypes = st.sampled_from([np.float32, np.float64])


def lay_out(x, layout):
    """The entries of x in another order in memory: x itself where it has no axis."""
    if layout == "strided":
        x = np.repeat(x, 2, -1)[..., ::2] if x.ndim else x
    elif layout == "reversed":
        x = np.flip(np.flip(x).copy())
    elif layout == "F":
        x = np.asfortranarray(x) if x.ndim else x
    return x


def random_array(shape, dtype=np.float64, seed=0):
    """Uniform in (-1, 1): for laws that hold for any entries, where shape and layout matter."""
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(dtype)


@st.composite
def broadcasting(draw, count=2):
    """Arrays in any layout whose shapes broadcast together."""
    together = hnp.mutually_broadcastable_shapes(num_shapes=count, max_dims=3, max_side=3)
    drawn = draw(together).input_shapes
    return [lay_out(random_array(shape, seed=k), draw(layouts)) for k, shape in enumerate(drawn)]


@st.composite
def laid_out_arrays(draw, shapes=shapes, dtype=np.float64):
    """An array in any layout."""
    return lay_out(random_array(draw(shapes), dtype), draw(layouts))


__all__ = [
    "LAYOUTS",
    "bits",
    "broadcasting",
    "dtypes",
    "factors",
    "float_arrays",
    "laid_out_arrays",
    "lay_out",
    "layouts",
    "optimizers",
    "random_array",
    "shapes",
    "trees",
]
