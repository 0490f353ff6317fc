"""The derivative of an optimum by the implicit function theorem: solvers and the pull-back.

At params where the gradient g(params, hyper) is 0, dparams/dhyper = -H^-1 dg/dhyper with H the
Hessian, so a cotangent c of the params has the cotangent -(dg/dhyper)^T H^-1 c of hyper.
"""

from dataclasses import dataclass

import numpy as np

from revgrad.errors import NotConverged
from revgrad.transforms import grad, vjp

HUGE = 1e100  # beyond it a sum that should settle never will


@dataclass(frozen=True)
class CG:
    """Conjugate gradients, for a positive definite Hessian. Source: Hestenes and Stiefel 1952.

    iterations: at most (default: ten per weight, at most 1,000). damping: added to the diagonal.
    tolerance: of the residual, relative to the right-hand side (default 1e-10, in float32 1e-4).
    """

    iterations: int | None = None
    tolerance: float | None = None
    damping: float = 0.0

    def solve(self, product, b, dtype):
        """x with product(x) = b. Raises: NotConverged."""
        most = self.iterations or min(1000, 10 * len(b))
        x, r, size = np.zeros_like(b), b.copy(), np.linalg.norm(b)
        wanted = (self.tolerance or _finest(dtype)) * size
        p, rr = r.copy(), r @ r
        for _ in range(most):
            if np.sqrt(rr) <= wanted:
                return x
            hp = product(p) + self.damping * p
            curvature = p @ hp
            if not curvature > 0:
                raise NotConverged(
                    f"the Hessian has curvature {curvature / (p @ p):.3g} in a direction that CG "
                    "met, so the params are no minimum; train longer, or pass CG(damping=...) "
                    "above that."
                )
            step = rr / curvature
            x, r = x + step * p, r - step * hp
            rr, before = r @ r, rr
            p = r + (rr / before) * p
        if np.sqrt(rr) <= wanted:
            return x
        raise NotConverged(
            f"CG left a residual of {np.sqrt(rr) / size:.3g} after {most} iterations, where "
            f"{wanted / size:.3g} was wanted; pass CG(iterations=...) with more, a damping, or a "
            "larger tolerance."
        )


@dataclass(frozen=True)
class Neumann:
    """The sum of rate (1 - rate H)^k b over k < iterations: as many steps of gradient descent.

    Converges for a rate below 2 over the largest curvature; a truncated sum is biased towards 0.
    tolerance: the last term's size relative to the sum above which it did not converge.
    Source: Lorraine et al. 2020.
    """

    rate: float
    iterations: int = 1000
    tolerance: float = 1e-3

    def solve(self, product, b, dtype):
        """About x with product(x) = b. Raises: NotConverged."""
        term, x = self.rate * b, self.rate * b
        for _ in range(self.iterations):
            term = term - self.rate * product(term)
            x = x + term
            if not np.max(np.abs(term), initial=0.0) < HUGE:
                break
        left = np.linalg.norm(term) / np.linalg.norm(x) if np.any(b) else 0.0
        if left <= self.tolerance:
            return x
        raise NotConverged(
            f"the last of {self.iterations} terms is {left:.3g} of the sum; use a rate below 2 "
            "over the largest curvature, more iterations, or CG()."
        )


def _finest(dtype):
    return 1e-10 if dtype == np.float64 else 1e-4


def pull_optimum(adjoint, run, leaves, hyper, ct):
    """Cotangents of the hyper leaves for a flat cotangent of the final params.

    Raises: NotConverged where the params are no optimum, or the solver fails.
    """
    layout = run.layout

    def loss(leaves, hyper):
        out = adjoint.loss(layout.unflatten(leaves), run.hyper_tree(hyper), adjoint.batch)
        return out[0] if isinstance(out, tuple) else out

    g, pullback = vjp(grad(loss), leaves, hyper)

    def pull(x):
        ct_params, ct_hyper = pullback(layout.cast(x))
        return layout.join(ct_params), ct_hyper

    def solve(b):
        return adjoint.solver.solve(lambda x: pull(x)[0], b, np.result_type(*layout.dtypes))

    away = np.linalg.norm(solve(layout.join(g)))
    size = np.linalg.norm(layout.join(leaves))
    if not away <= adjoint.tolerance * size:
        raise NotConverged(
            f"the params ended about {away:.3g} away from the optimum, {away / size:.3g} of their "
            f"length, where {adjoint.tolerance:g} is allowed; train longer with smaller rates at "
            "the end, pass the loss and batch that training minimises, or a larger "
            "Implicit(tolerance=...)."
        )
    return [-np.asarray(x) for x in pull(solve(ct))[1]]
