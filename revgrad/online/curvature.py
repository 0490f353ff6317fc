"""The gradient of a run's loss with its tangents: products with the loss's second derivatives."""

import numpy as np

from revgrad._ext import homes
from revgrad.compiled import ones_like
from revgrad.gradient import Gradient


class Curvature:
    """A run's gradient, as `Gradient.value` has it, and `product` where it was taken last, exact.

    moving: which leaves of the loss's hyper may have tangents.
    """

    def __init__(self, run, values, moving):
        self.gradient, self.hyper = Gradient(run, values), values.hyper
        self.moving, self.layout, self.column = tuple(moving), run.layout, None

    def value(self, leaves, t):
        answer, self.column = self.gradient.with_column(leaves, t, self.moving)
        return answer

    def product(self, row, hyper):
        """Tangent of the gradient, flat, which the next call overwrites.

        row: that of the params, flat; hyper: those of its moving leaves, None for zero.
        """
        of_hyper = [None] * len(self.hyper)
        for k, x in zip(self.moving, self._still() if hyper is None else hyper, strict=True):
            of_hyper[k] = x
        return self.column(row, of_hyper)

    def _still(self):
        return [0.0 * ones_like(self.hyper[k]) for k in self.moving]


class Differences(Curvature):
    """The same by central differences of two gradients more, as Im et al.'s code has it.

    The distance to either side is max(sqrt(eps) (1 + max |params|) / max |tangent|, 0.001), maxima
    over the first leaf alone.
    """

    def value(self, leaves, t):
        value, g = self.gradient.value(leaves, t)
        self.at = leaves, t
        return value, g.copy()

    def product(self, row, hyper):
        (params, t), given, leaves = self.at, list(self.hyper), self.layout.cast(row)
        largest = float(np.max(np.abs(leaves[0]))) or 1.0
        eps = np.finfo(self.layout.dtype).eps
        r = max(np.sqrt(eps) * (1 + float(np.max(np.abs(params[0])))) / largest, 1e-3)

        def gradient(r):
            for k, x in zip(self.moving, hyper or (), strict=hyper is not None):
                self.hyper[k] = given[k] + r * x
            pairs = [(p, p + r * v) for p, v in zip(params, leaves, strict=True)]
            moved = [homes.real_array(x).astype(p.dtype, copy=False) for p, x in pairs]
            return self.gradient.value(moved, t)[1].copy()

        try:
            return (gradient(r) - gradient(-r)) / self.layout.dtype.type(2 * r)
        finally:
            self.hyper[:] = given
