"""Hand-written NumPy for nets of tanh layers: every buffer made once, no engine.

`numpy-plain` only trains. `numpy-hand` is a hypergradient as one would write it out: a copy of
every state, and gradient and Hessian products in one pass on the way back. Rates and momenta per
step and leaf, a penalty per weight or one for all.
"""

import numpy as np

from . import ours


class Net:
    """Gradient, and Hessian products, of the mean loss of `count` rows."""

    def __init__(self, shapes, count, dtype):
        self.layers, e = len(shapes) // 2, lambda *s: np.empty(s, dtype)
        widths = [s[0] for s in shapes[1::2]]
        self.h, self.r, self.slope, self.t, self.u, self.s = (
            [e(count, k) for k in widths] for _ in range(6)
        )
        self.c, self.like = e(count, 1), [e(*s) for s in shapes]

    def forward(self, params, x):
        """Probabilities are left in the last of h; returns the log of their denominators."""
        last, c = self.layers - 1, self.c
        for k, h in enumerate(self.h):
            np.matmul(x, params[2 * k], h)
            np.add(h, params[2 * k + 1], h)
            x = np.tanh(h, h) if k < last else h
        np.maximum.reduce(h, 1, None, c, True)
        np.subtract(h, c, h)
        return h

    def value(self, params, x, y):
        z = self.forward(params, x)
        wanted = np.vdot(z, y)
        np.exp(z, z)
        np.add.reduce(z, 1, None, self.c, True)
        return (np.log(self.c).sum() - wanted) / len(x)

    def probabilities(self, params, x):
        z = self.forward(params, x)
        np.exp(z, z)
        np.add.reduce(z, 1, None, self.c, True)
        np.divide(z, self.c, z)

    def error(self, y):
        """The loss's derivative by the logits, in the place of the probabilities."""
        np.subtract(self.h[-1], y, self.h[-1])
        return np.divide(self.h[-1], len(y), self.h[-1])

    def grad(self, params, x, y, out):
        self.probabilities(params, x)
        d = self.error(y)
        for k in range(self.layers - 1, -1, -1):
            below = self.h[k - 1] if k else x
            np.matmul(below.T, d, out[2 * k])
            np.add.reduce(d, 0, None, out[2 * k + 1])
            if k:
                t, u = self.t[k - 1], self.u[k - 1]
                np.matmul(d, params[2 * k].T, u)
                np.multiply(below, below, t)
                np.subtract(1, t, t)
                d = np.multiply(u, t, u)

    def joint(self, params, direction, x, y, out, product, by_inputs=None):
        """Gradient into out, its product with the Hessian into product.

        by_inputs: where the product's derivative by x goes, if it is wanted (one layer only).
        """
        self.pushed(params, direction, x)
        p, r, t, c = self.h[-1], self.r[-1], self.t[-1], self.c
        np.multiply(p, r, t)
        np.add.reduce(t, 1, None, c, True)
        np.subtract(r, c, r)
        np.multiply(r, p, r)
        e = np.divide(r, len(x), r)
        d = self.error(y)
        for k in range(self.layers - 1, -1, -1):
            below = self.h[k - 1] if k else x
            np.matmul(below.T, d, out[2 * k])
            np.add.reduce(d, 0, None, out[2 * k + 1])
            np.matmul(below.T, e, product[2 * k])
            np.add.reduce(e, 0, None, product[2 * k + 1])
            if k:
                np.matmul(self.r[k - 1].T, d, self.like[2 * k])
                np.add(product[2 * k], self.like[2 * k], product[2 * k])
                d, e = self.pulled(k, d, e, params[2 * k], direction[2 * k])
        if by_inputs is not None:
            np.add(e @ params[0].T, d @ direction[0].T, by_inputs)

    def pushed(self, params, direction, x):
        """Probabilities in h, tangents in r."""
        for k in range(self.layers):
            h, r, t = self.h[k], self.r[k], self.t[k]
            np.matmul(x, params[2 * k], h)
            np.add(h, params[2 * k + 1], h)
            np.matmul(x, direction[2 * k], r)
            np.add(r, direction[2 * k + 1], r)
            if k:
                np.add(r, np.matmul(self.r[k - 1], params[2 * k], t), r)
            if k < self.layers - 1:
                x = np.tanh(h, h)
                np.multiply(h, h, self.slope[k])
                np.subtract(1, self.slope[k], self.slope[k])
                np.multiply(r, self.slope[k], r)
        np.maximum.reduce(h, 1, None, self.c, True)
        np.subtract(h, self.c, h)
        np.exp(h, h)
        np.add.reduce(h, 1, None, self.c, True)
        np.divide(h, self.c, h)

    def pulled(self, k, d, e, w, dw):
        h, r, slope = self.h[k - 1], self.r[k - 1], self.slope[k - 1]
        t, u, s = self.t[k - 1], self.u[k - 1], self.s[k - 1]
        np.matmul(d, w.T, u)
        np.matmul(e, w.T, s)
        np.add(s, np.matmul(d, dw.T, t), s)
        np.multiply(s, slope, s)
        np.multiply(u, h, t)
        np.multiply(t, r, t)
        np.multiply(t, 2, t)
        return np.multiply(u, slope, u), np.subtract(s, t, s)


class Trainer:
    """Training of a problem, all params in one vector with leaves as views."""

    def __init__(self, problem):
        self.problem, self.data, self.rows = problem, ours.prepared(problem), problem.rows()
        self.dtype, theta = problem.dtype, problem.theta
        rates = [
            np.broadcast_to(np.asarray(r, self.dtype), (problem.steps, problem.leaves))
            for r in problem.rates(ours.Ops, theta)
        ]
        self.rates, self.momenta = rates
        shapes = [w.shape for w in problem.start(ours.Ops, theta, self.data)]
        self.sizes, self.shapes = [int(np.prod(s)) for s in shapes], shapes
        self.net = Net(shapes, problem.size or len(self.data["y"]), self.dtype)
        self.final = Net(shapes, len(self.data["fy"]), self.dtype)
        self.params, self.velocity, self.g, self.tmp = (self.vector() for _ in range(4))
        shared = problem.shared(ours.Ops, theta)
        self.penalty = shared.get("penalty")
        self.biases_too = "pixels" in shared
        count, width = self.net.h[0].shape[0], shapes[0][0]
        self.x = np.ascontiguousarray(shared.get("pixels", np.empty((count, width), self.dtype)))
        self.y = self.data["y"] if self.rows is None else np.empty((count, 10), self.dtype)

    def vector(self):
        """(flat, leaves)."""
        flat = np.zeros(sum(self.sizes), self.dtype)
        parts = np.split(flat, np.cumsum(self.sizes)[:-1])
        return flat, [p.reshape(s) for p, s in zip(parts, self.shapes, strict=True)]

    def start(self):
        for w, first in zip(
            self.params[1],
            self.problem.start(ours.Ops, self.problem.theta, self.data),
            strict=True,
        ):
            w[...] = first
        self.velocity[0][...] = 0

    def batch(self, t):
        if self.rows is not None:
            np.take(self.data["x"], self.rows[t], 0, self.x, "clip")
            np.take(self.data["y"], self.rows[t], 0, self.y, "clip")
        return self.x, self.y

    def penalised(self, params, out):
        """Add the penalty's gradient, or its product with a direction in the place of params."""
        if self.penalty is not None:
            for k in range(1 + self.biases_too):
                np.multiply(params[k], 2 * self.penalty, self.tmp[1][k])
                np.add(out[k], self.tmp[1][k], out[k])

    def step(self, t):
        params, velocity, g, tmp = self.params[1], self.velocity[1], self.g[1], self.tmp[1]
        self.net.grad(params, *self.batch(t), g)
        self.penalised(params, g)
        leaves = zip(params, velocity, g, tmp, self.momenta[t], self.rates[t], strict=True)
        for w, v, d, z, m, a in leaves:
            np.multiply(v, m, v)
            np.multiply(d, 1 - m, d)
            np.subtract(v, d, v)
            np.multiply(v, a, z)
            np.add(w, z, w)

    def plain(self):
        self.start()
        for t in range(self.problem.steps):
            self.step(t)
        return self.final.value(self.params[1], self.data["fx"], self.data["fy"])

    def hypergradient(self):
        self.start()
        kept = []
        for t in range(self.problem.steps):
            kept.append((self.params[0].copy(), self.velocity[0].copy()))
            self.step(t)
        fx, fy = self.data["fx"], self.data["fy"]
        value = self.final.value(self.params[1], fx, fy)
        return value, self.back(kept, fx, fy)

    def back(self, kept, fx, fy):
        (_, dw), (_, dv), (_, hv), (_, way) = (self.vector() for _ in range(4))
        self.final.grad(self.params[1], fx, fy, dw)
        by_rate, by_momentum = np.zeros_like(self.rates), np.zeros_like(self.momenta)
        by_penalty, by_x = 0, np.zeros_like(self.x) if self.biases_too else None
        total_x, g = np.zeros_like(self.x), self.g[1]
        for t in reversed(range(self.problem.steps)):
            v_next = self.velocity[1]
            for k in range(len(dw)):
                by_rate[t, k] = np.vdot(dw[k], v_next[k])
                np.multiply(dw[k], self.rates[t, k], way[k])
                np.add(dv[k], way[k], dv[k])
                np.multiply(dv[k], self.momenta[t, k] - 1, way[k])  # the gradient's cotangent
            self.params[0][...], self.velocity[0][...] = kept.pop()
            params = self.params[1]
            self.net.joint(params, way, *self.batch(t), g, hv, by_x)
            self.penalised(params, g)
            self.penalised(way, hv)
            if self.penalty is not None:
                by_penalty = by_penalty + self.by_penalty(params, way)
                total_x += 0 if by_x is None else by_x
            for k in range(len(dw)):
                by_momentum[t, k] = np.vdot(dv[k], np.add(self.velocity[1][k], g[k], g[k]))
                np.add(dw[k], hv[k], dw[k])
                np.multiply(dv[k], self.momenta[t, k], dv[k])
        return self.chained(by_rate, by_momentum, by_penalty, total_x, dw)

    def by_penalty(self, params, way):
        if not self.biases_too:
            return 2 * params[0] * way[0]
        return 2 * sum(np.vdot(w, d) for w, d in zip(params, way, strict=True))

    def chained(self, by_rate, by_momentum, by_penalty, by_x, dw):
        """From rates, momenta, penalty, images and first params to theta."""
        theta, found = self.problem.theta, {}
        if "log_rate" in theta:
            found["log_rate"] = by_rate * self.rates
            found["logit_momentum"] = by_momentum * self.momenta * (1 - self.momenta)
        if "log_scale" in theta:
            start = self.problem.start(ours.Ops, theta, self.data)
            found["log_scale"] = np.array([np.vdot(d, w) for d, w in zip(dw, start, strict=True)])
        if "log_penalty" in theta:
            found["log_penalty"] = by_penalty * self.penalty
        if "pixels" in theta:
            found["pixels"] = by_x
        return found


SKIPPED = dict.fromkeys(("lenet", "lstm"), "written by hand for nets of tanh layers alone")


def build(problem, name):
    trainer = Trainer(problem)
    if name == "numpy-plain":
        return lambda: (trainer.plain(), {})
    return trainer.hypergradient


def setup(dtype, threads):
    """NumPy's threads come from the environment."""
