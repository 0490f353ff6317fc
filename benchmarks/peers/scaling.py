"""How the time of one hypergradient grows: with steps, hyperparameters and weights. A picture."""

import numpy as np

import revgrad as rg
from revgrad.nn import softmax_cross_entropy

FITS = {"steps": "linear", "hyperparameters": "flat", "weights": "linear"}


def net(width, batch=200, dtype=np.float32):
    """(params, batch) of a tanh layer on random images."""
    rng = np.random.default_rng(0)
    shapes = (784, width), (width,), (width, 10), (10,)
    params = [(0.05 * rng.standard_normal(s)).astype(dtype) for s in shapes]
    x = rng.random((batch, 784)).astype(dtype)
    return params, (x, np.eye(10, dtype=dtype)[rng.integers(0, 10, batch)])


def nll(params, batch):
    x, y = batch
    hidden = np.tanh(x @ params[0] + params[1])
    return softmax_cross_entropy(hidden @ params[2] + params[3], y)


def penalised(params, penalty, batch):
    """Each penalty has its share of the first layer's weights."""
    w = np.reshape(params[0], (penalty.shape[0], -1))
    return nll(params, batch) + np.sum(penalty * np.sum(w * w, axis=1))


def seconds(width, steps, penalties, repeats, clock):
    """The best of some hypergradients: by all rates, one per step, and by all penalties."""
    params, batch = net(width)

    def hyperloss(rates, penalty):
        trained = rg.train(
            penalised,
            params,
            rg.Momentum(rg.per_step(rates), 0.9),
            [batch],
            steps=steps,
            hyper=penalty,
            adjoint=rg.Reversible(),
        )
        return nll(trained, batch)

    f = rg.grad(hyperloss, argnums=(0, 1))
    args = np.full(steps, 0.1), np.full(penalties, 1e-5, np.float32)
    times = []
    for _ in range(repeats + 1):  # the first one records
        began = clock()
        f(*args)
        times.append(clock() - began)
    return min(times[1:])


def cases(small):
    """{what grows: [(its value, width, steps, penalties)]}."""
    width = 128 if small else 1280  # the first layer has 100,352 or 1,003,520 weights
    last = 784 * width
    top = 5 if small else 6
    counts = [10, *(10**k // 784 * 784 or 98 for k in range(2, top)), last]
    steps = (25, 50, 100, 200) if small else (100, 200, 500, 1000, 2000, 5000, 10_000)
    widths = (13, 126, 1260) if small else (13, 40, 126, 400, 1260, 4000, 12_600)
    counts = [divisor(last, n) for n in counts]
    return {
        "steps": [(n, 50, n, 1) for n in steps],
        "hyperparameters": [(n + 10, width, 10, n) for n in counts],
        "weights": [(794 * n, n, 10, 1) for n in widths],
    }


def divisor(total, near):
    return next(n for n in range(near, 0, -1) if total % n == 0)


def draw(path, small, clock):
    """Write the picture; returns the rows it shows. clock: a function of `time`."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator, NullFormatter

    figure, axes = plt.subplots(1, 3, figsize=(10, 3.1), sharey=False, layout="constrained")
    rows = []
    for ax, (what, points) in zip(axes, cases(small).items(), strict=True):
        x = np.array([p[0] for p in points], float)
        y = np.array([seconds(*p[1:], 3, clock) for p in points])
        rows += [{"against": what, "x": a, "seconds": b} for a, b in zip(x, y, strict=True)]
        guide = y[-1] * (x / x[-1] if FITS[what] == "linear" else np.ones(len(x)))
        ax.loglog(x, guide, ":", color="0.6", label=FITS[what])
        ax.loglog(x, y, "o-", color="C0", label="Reversible()")
        ax.set(xlabel=f"number of {what}", ylabel="seconds for one hypergradient")
        low, high = min(y.min(), guide.min()), max(y.max(), guide.max())
        ax.set_xlim(10 ** np.floor(np.log10(x[0])), 10 ** np.ceil(np.log10(x[-1])))
        ax.set_ylim(10 ** np.floor(np.log10(low / 2)), 10 ** np.ceil(np.log10(2 * high)))
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_locator(LogLocator(10))
            axis.set_minor_formatter(NullFormatter())
        ax.spines[["top", "right"]].set_visible(False)
        ax.legend(frameon=False)
    figure.savefig(path, dpi=130)
    for r in rows:
        print(f"{r['against']:>16} {r['x']:>12,.0f} {r['seconds']:9.3f} s")
    return rows
