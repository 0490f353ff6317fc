"""The recorded push-forward of a loss's gradient: phase 1 the gradient, phase 2 its tangents."""

import threading
from itertools import pairwise

import numpy as np
import optree

from revgrad._ext import homes
from revgrad.compiled import ones_like
from revgrad.lanes import Lanes
from revgrad.rules.row import cast, dtype_of, shape_of
from revgrad.transforms import jvp, value_and_grad


class GradientPush:
    """Loss, aux and gradient of f(leaves, hyper, batch), and tangents of the gradient.

    dynamic(args) -> the arrays and floats in args; arguments(those) -> args. moving: which leaves
    of hyper have tangents. count: how many columns there may be.
    """

    def __init__(self, f, args, dynamic, arguments, moving, count):
        self.dynamic, self.moving = dynamic, moving
        leaves, hyper, _ = args
        ends = np.cumsum([0, *(np.size(x) for x in leaves)]).tolist()
        kinds = {dtype_of(x) for x in leaves}
        self.dtype = kinds.pop() if len(kinds) == 1 else np.dtype(np.float64)
        self.size, self.local = ends[-1], threading.local()
        self.at = homes.empty_beside(0, self.dtype, leaves[0])

        def split(v):
            spans = zip(ends, ends[1:], leaves, strict=False)
            return [cast(v[a:b].reshape(shape_of(x)), dtype_of(x)) for a, b, x in spans]

        def both(*boxes):
            params, given, batch = arguments(boxes)

            def gradient(params, moved):
                now = list(given)
                for k, x in zip(moving, moved, strict=True):
                    now[k] = x
                value_and_aux, g = value_and_grad(f, has_aux=True)(params, now, batch)
                return g, value_and_aux

            def then(v, *of_hyper):
                at = list(params), [given[k] for k in moving]
                g, t_g, found = jvp(gradient, at, (split(v), list(of_hyper)), has_aux=True)
                found, self.tree = optree.tree_flatten(found)
                return [*found, *g], t_g

            return None, then

        self.like = [ones_like(hyper[k]) for k in moving]
        second = [homes.beside(np.ones(self.size, self.dtype), self.at), *self.like]
        together = (0, slice(-len(leaves), None)), (1, slice(len(leaves)))
        self.lanes = Lanes(both, dynamic(args), second, count, together=together)
        self.spans = [*pairwise(ends)]

    def start(self, args):
        """(loss, aux, flat gradient or its leaves) at args; overwritten by the next call."""
        out, n = self.lanes.start(self.dynamic(args)), len(args[0])
        value, aux = optree.tree_unflatten(self.tree, out[:-n])
        vector = self.lanes.replay().vectors[0]
        return value, aux, out[-n:] if vector is None else vector

    def push(self, rows, of_hyper, out):
        """Tangents of the gradient at the last `start`, into the rows of `out`.

        rows: flat tangents of the params; None are zero. of_hyper: per moving leaf of hyper,
        tangents with a leading axis of as many columns.
        """
        for part in self.lanes.chunks(0, len(out)):
            width = part.stop - part.start
            v = self._scratch(width)
            v[...] = 0 if rows is None else rows[part].reshape(v.shape)
            more = [_lane(x, part, like) for x, like in zip(of_hyper, self.like, strict=True)]
            if width == 1:
                out[part] = self._column(v, more)
            else:
                found = self.lanes.push(width, [v, *more])
                for (lo, hi), x in zip(self.spans, found, strict=True):
                    out[part, lo:hi] = homes.beside(np.reshape(x, (width, hi - lo)), out)

    def column(self, row, of_hyper):
        """The same for one column without its axis, nothing copied: overwritten by the next one.

        row: flat, contiguous. of_hyper: as the moving leaves are.
        """
        of_hyper = [_in_kind(x, like) for x, like in zip(of_hyper, self.like, strict=True)]
        return self._column(row.astype(self.dtype, copy=False), of_hyper)

    def _column(self, v, of_hyper):
        found, vector = self.lanes.push(1, [v, *of_hyper]), self.lanes.replay().vectors[1]
        return np.concatenate([np.ravel(x) for x in found]) if vector is None else vector

    def _scratch(self, width):
        """Memory for the directions of so many lanes: always the same, so that views are kept."""
        kept, shape = vars(self.local), (width, self.size)[width == 1 :]
        if width not in kept:
            kept[width] = homes.empty_beside(shape, self.dtype, self.at)
        return kept[width]


def _lane(x, part, like):
    """Some rows of tangents, or the one in the kind of `like`."""
    if part.stop - part.start > 1:
        return x[part].astype(dtype_of(like), order="C", copy=False)
    return _in_kind(x[part.start], like)


def _in_kind(x, like):
    x = homes.real_array(x).astype(dtype_of(like), order="C", copy=False).reshape(shape_of(like))
    return float(x) if type(like) is float else x[()]
