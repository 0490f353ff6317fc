"""linearize: the derivative of a function at a point, as a recorded program.

Only what depends on the tangents is recorded; the rest was computed once and is a constant of it.
"""

import threading

import numpy as np
import optree

from revgrad._ext import homes
from revgrad.compiled import ones_like
from revgrad.fuse import fuse
from revgrad.lanes import batched
from revgrad.record import Var, forget, in_layout, record
from revgrad.replay import Replay
from revgrad.rules.row import dtype_of, shape_of
from revgrad.transforms import flatten_floats, flatten_like, jvp


def linearize(f, *primals):
    """(f(*primals), linear map): the map takes tangents like primals to the tangent of the result.

    One application costs the linear part of f alone; tangents of another memory order than the
    primals' are copied. `linear.batch(*tangents)` takes tangents with
    a leading axis, the same for all, and maps them at once. Names are JAX's.
    """
    leaves, tree = flatten_floats(primals, "primals")
    kept = {}

    def flat(*tangents):
        kept["out"], t = jvp(f, primals, optree.tree_unflatten(tree, tangents))
        ts, kept["tree"] = optree.tree_flatten(t)
        return ts

    program = record(flat, [ones_like(x) for x in leaves])
    return kept["out"], LinearMap(program, tree, kept["tree"], leaves)


class LinearMap:
    """What `linearize` returns: applies a derivative to tangents."""

    def __init__(self, program, tree, out_tree, leaves):
        self.program, self.tree, self.out_tree = program, tree, out_tree
        self.shapes = [shape_of(x) for x in leaves]
        self.dtypes, self.places = [dtype_of(x) for x in leaves], homes.of_lanes(leaves)
        self.local = threading.local()
        self.fused = fuse(program.instructions, program.outputs)
        forget(program.instructions, program.inputs)

    def __deepcopy__(self, _memo):
        return self  # nothing in it changes but its buffers

    def __reduce__(self):
        raise TypeError(
            "a linear map holds functions and cannot be pickled; pickle the primals, and linearize "
            "where the map is needed."
        )

    def __call__(self, *tangents):
        ts = self._checked(tangents, ())
        ts = [in_layout(t, v.value) for t, v in zip(ts, self.program.inputs, strict=True)]
        if not hasattr(self.local, "replay"):
            p = self.program
            self.local.replay = Replay([p.inputs], [self.fused], [p.outputs])
        return optree.tree_unflatten(self.out_tree, self.local.replay.run[0](*ts))

    def batch(self, *tangents):
        """Apply to tangents with a leading axis; results have it too. Every row is one tangent.

        Instructions act on all rows at once where they can, and row by row where they cannot.
        """
        shapes = [shape_of(x) for x in optree.tree_leaves(tangents)]
        if not shapes or not shapes[0]:
            raise TypeError(
                f"linear.batch got {'a number' if shapes else 'no array'}; every tangent must have "
                "a leading axis, one row per tangent. For one tangent call the map itself."
            )
        if self.places is None:
            raise TypeError(
                "linear.batch of primals some of which are NumPy's arrays and some another kind's; "
                "bring them to one, or apply the map to one tangent at a time."
            )
        count = shapes[0][0]
        pairs = zip(self._checked(tangents, (count,)), self.places, strict=True)
        rows = [homes.beside(x, at) for x, at in pairs]
        found = dict(zip(self.program.inputs, rows, strict=True))
        for i in self.program.instructions:
            given = [found.get(x, x) if isinstance(x, Var) else x for x in i.inputs]
            has_lanes = [isinstance(x, Var) for x in i.inputs]
            found[i.outputs[0]] = batched(i, given, has_lanes, count)
        outs = [
            found[x] if isinstance(x, Var) else np.broadcast_to(x, (count, *shape_of(x))).copy()
            for x in self.program.outputs
        ]
        return optree.tree_unflatten(self.out_tree, outs)

    def _checked(self, tangents, lead):
        ts = flatten_like(tangents, self.tree, "the tangents", "linearize's primals")
        for t, shape in zip(ts, self.shapes, strict=True):
            if shape_of(t) != (*lead, *shape):
                raise TypeError(
                    f"a tangent has shape {shape_of(t)}; {(*lead, *shape)} is wanted, the primal's"
                    f"{' after the axis of tangents' if lead else ''}."
                )
        pairs = zip(ts, self.dtypes, strict=True)
        return [
            t if type(t) is float else homes.real_array(t).astype(dtype, copy=False)[()]
            for t, dtype in pairs
        ]
