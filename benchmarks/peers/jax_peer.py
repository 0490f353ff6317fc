"""JAX: the whole hypergradient under jit, training as a scan, batches gathered by index inside it.

`jax` stores what the scan's derivative wants, `jax-remat` only the states (jax.checkpoint around
the step, whose work is then done again), `jax-plain` only trains; with `-conv` behind it, images
are convolved by XLA's own convolution. The program is compiled ahead of time; the data live on
JAX's side.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


class Ops:
    exp, tanh, sum = jnp.exp, jnp.tanh, jnp.sum
    sigmoid, relu = jax.nn.sigmoid, jax.nn.relu

    @staticmethod
    def cross_entropy(logits, y):
        if jnp.issubdtype(y.dtype, jnp.integer):
            y = jax.nn.one_hot(y, logits.shape[-1], dtype=logits.dtype)
        return -jnp.sum(y * jax.nn.log_softmax(logits)) / (y.size // y.shape[-1])

    @staticmethod
    def lookup(table, ids):
        """As a product: its transpose is one too, where a gather's is a scatter, one at a time."""
        return jax.nn.one_hot(ids, table.shape[0], dtype=table.dtype) @ table

    @staticmethod
    def images(x):
        """(C, H, W, N): windows then are whole stretches of memory."""
        return jnp.transpose(x, (3, 1, 2, 0))

    @staticmethod
    def conv(x, w, b, padding):
        """As one product: two to three times faster here than lax.conv and its derivatives."""
        kh, kw, c, o = w.shape
        x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
        rows, columns, n = x.shape[1] - kh + 1, x.shape[2] - kw + 1, x.shape[3]
        windows = [x[:, i : i + rows, j : j + columns] for i in range(kh) for j in range(kw)]
        y = w.reshape(-1, o).T @ jnp.stack(windows).reshape(kh * kw * c, -1)
        return y.reshape(o, rows, columns, n) + b[:, None, None, None]

    @staticmethod
    def pool(x):
        c, h, w, n = x.shape
        return x.reshape(c, h // 2, 2, w // 2, 2, n).max((2, 4))

    @staticmethod
    def flat(x):
        return jnp.transpose(x, (3, 1, 2, 0)).reshape(x.shape[3], -1)

    @staticmethod
    def lstm(w, u, b, xs):
        """The inputs' products for all times at once, then a scan."""

        def cell(state, gates):
            h, c = state
            i, f, g, o = jnp.split(gates + h @ u, 4, axis=-1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            h = jax.nn.sigmoid(o) * jnp.tanh(c)
            return (h, c), h

        zeros = jnp.zeros((xs.shape[1], u.shape[0]), xs.dtype)
        return lax.scan(cell, (zeros, zeros), xs @ w + b)[1]


class Conv(Ops):
    """Images as they come, convolved by what XLA calls (cuDNN, on a GPU)."""

    @staticmethod
    def images(x):
        return x

    @staticmethod
    def conv(x, w, b, padding):
        axes, pads = ("NHWC", "HWIO", "NHWC"), [(padding, padding)] * 2
        return lax.conv_general_dilated(x, w, (1, 1), pads, dimension_numbers=axes) + b

    @staticmethod
    def pool(x):
        n, h, w, c = x.shape
        return x.reshape(n, h // 2, 2, w // 2, 2, c).max((2, 4))

    @staticmethod
    def flat(x):
        return x.reshape(x.shape[0], -1)


def prepared(problem):
    """The data and the batches' indices, on JAX's side; labels of classifiers as one-hot rows."""
    data = dict(problem.data)
    for name in ("y", "fy"):
        if data[name].ndim == 1:
            data[name] = np.eye(10, dtype=problem.dtype)[data[name]]
    rows = problem.rows()
    data["rows"] = np.zeros((problem.steps, 0), np.int32) if rows is None else rows.astype(np.int32)
    return {k: jnp.asarray(v) for k, v in data.items()}


def hyperloss_of(problem, remat, ops):
    def hyperloss(theta, data):
        shared = problem.shared(ops, theta)
        rates = [
            jnp.broadcast_to(jnp.asarray(r, problem.dtype), (problem.steps, problem.leaves))
            for r in problem.rates(ops, theta)
        ]

        def step(state, now):
            params, velocity = state
            rate, momentum, rows = now
            x, y = data["x"], data["y"]
            if problem.size is not None:
                x, y = x[rows], y[rows]
            g = jax.grad(lambda p: problem.loss(ops, p, shared, x, y))(params)
            velocity = [m * v - (1 - m) * d for m, v, d in zip(momentum, velocity, g, strict=True)]
            params = [w + a * v for w, a, v in zip(params, rate, velocity, strict=True)]
            return (params, velocity), None

        params = problem.start(ops, theta, data)
        state = params, [jnp.zeros_like(w) for w in params]
        step = jax.checkpoint(step) if remat else step
        (params, _), _ = lax.scan(step, state, (*rates, data["rows"]))
        return problem.final(ops, params, data)

    return hyperloss


def build(problem, name):
    data = prepared(problem)
    theta = jax.tree.map(jnp.asarray, problem.theta)
    f = hyperloss_of(problem, "remat" in name, Conv if name.endswith("conv") else Ops)
    f = f if name == "jax-plain" else jax.value_and_grad(f)
    program = jax.jit(f).lower(theta, data).compile()

    def run():
        out = jax.block_until_ready(program(theta, data))
        return (out, {}) if name == "jax-plain" else out

    return run


def setup(dtype, threads, device="cpu"):
    """Once per process, before anything is made; threads follow the process's affinity.

    Products are of full precision, which on a GPU is not what JAX does by itself (TF32).
    """
    jax.config.update("jax_enable_x64", dtype == "float64")
    jax.config.update("jax_platforms", device)
    if device != "cpu":
        jax.config.update("jax_default_matmul_precision", "highest")
