"""The gradient of a run's loss with its tangents: products with the loss's second derivatives."""

import numpy as np
import optree

from revgrad.compiled import TwoPhase, ones_like
from revgrad.gradient import Gradient
from revgrad.transforms import jvp, value_and_grad


class Curvature(Gradient):
    """The gradient of a run; and `product`, exact, at the params, hyper and batch of the last one.

    moving: which leaves of the loss's hyper may have tangents.
    """

    def __init__(self, run, values, moving):
        super().__init__(run, values)
        self.moving, self.pairs, self.then = moving, {}, None

    def value(self, leaves, t):
        args, recording = self._at(leaves, t)
        if recording is None:
            value, aux, g = self._on_the_tape(args)
        else:
            if recording not in self.pairs:
                self.pairs[recording] = _Pair(self.f, recording, args, self.moving)
            value, aux, g, self.then = self.pairs[recording].start(args)
        return (value, aux), self._flat(g, value)

    def _on_the_tape(self, args):
        params, hyper, batch = args
        gradient = _gradient(self.f, hyper, batch, self.moving)
        at = list(params), [hyper[k] for k in self.moving]
        g, (value, aux) = gradient(*at)

        def then(*v):
            n = len(params)
            return jvp(gradient, at, (list(v[:n]), list(v[n:])), has_aux=True)[1], None

        self.then = then
        return value, aux, g

    def product(self, leaves, hyper):
        """Tangent of the gradient, flat, which the next call overwrites.

        leaves: that of the params; hyper: those of its moving leaves.
        """
        found, vector = self.then(*leaves, *hyper)
        return self._flat(found if vector is None else vector)

    def still(self):
        """Tangents of zero for the moving leaves of hyper."""
        return [0.0 * ones_like(self.values.hyper[k]) for k in self.moving]


class Differences(Curvature):
    """The same by central differences of two gradients more, as Im et al.'s code has it.

    The distance to either side is max(sqrt(eps) (1 + max |params|) / max |tangent|, 0.001), maxima
    over the first leaf alone.
    """

    def value(self, leaves, t):
        value, g = Gradient.value(self, leaves, t)
        self.at = leaves, t
        return value, g.copy()

    def product(self, leaves, hyper):
        (params, t), given = self.at, list(self.values.hyper)
        largest = float(np.max(np.abs(leaves[0]))) or 1.0
        eps = np.finfo(self.layout.dtype).eps
        r = max(np.sqrt(eps) * (1 + float(np.max(np.abs(params[0])))) / largest, 1e-3)

        def gradient(r):
            for k, x in zip(self.moving, hyper, strict=True):
                self.values.hyper[k] = given[k] + r * x
            moved = [np.asarray(p + r * v, p.dtype) for p, v in zip(params, leaves, strict=True)]
            return Gradient.value(self, moved, t)[1].copy()

        try:
            return (gradient(r) - gradient(-r)) / np.dtype(self.layout.dtype).type(2 * r)
        finally:
            self.values.hyper[:] = given


class _Pair:
    """Loss, aux and gradient as one program, tangents of the gradient as its second phase."""

    def __init__(self, f, recording, args, moving):
        self.recording, count = recording, len(args[0])
        params, hyper, _ = args

        def both(*boxes):
            params, hyper, batch = recording._arguments(boxes)

            def then(*v):
                gradient = _gradient(f, hyper, batch, moving)
                at = list(params), [hyper[k] for k in moving]
                g, t_g, found = jvp(gradient, at, (list(v[:count]), list(v[count:])), has_aux=True)
                found, self.tree = optree.tree_flatten(found)
                return [*found, *g], t_g

            return None, then

        second = [ones_like(x) for x in (*params, *(hyper[k] for k in moving))]
        together = slice(-count, None), slice(count)
        self.phases = TwoPhase(
            both, recording._inputs(args), lambda _: second, borrow=True, together=together
        )
        self.count = count

    def start(self, args):
        """(loss, aux, g, then)."""
        out, then = self.phases.start(self.recording._inputs(args))
        value, aux = optree.tree_unflatten(self.tree, out[: -self.count])
        whole, tangent = self.phases.replay().vectors
        own = optree.tree_map(lambda x: x.copy() if isinstance(x, np.ndarray) else x, aux)
        g = list(out[-self.count :]) if whole is None else whole
        return value, own, g, lambda *v: (then(v), tangent)


def _gradient(f, hyper, batch, moving):
    """(params, moving leaves of hyper) -> (gradient by the params, (loss, aux))."""

    def gradient(params, moved):
        now = list(hyper)
        for k, x in zip(moving, moved, strict=True):
            now[k] = x
        found, g = value_and_grad(f, has_aux=True)(params, now, batch)
        return g, found

    return gradient
