"""Training written out as a Python loop, for tapes: PyTorch, autograd."""


def hyperloss(problem, o, theta, data, rows, gradient):
    """gradient(loss, params) -> list, itself differentiable; o.unstack: an array to its rows."""
    shared = problem.shared(o, theta)
    rates, momenta = (per_step(problem, o, r) for r in problem.rates(o, theta))
    params = problem.start(o, theta, data)
    velocity = [0 * w for w in params]
    for t in range(problem.steps):
        x, y = data["x"], data["y"]
        if rows is not None:
            x, y = x[rows[t]], y[rows[t]]
        g = gradient(lambda p, x=x, y=y: problem.loss(o, p, shared, x, y), params)
        velocity = [m * v - (1 - m) * d for m, v, d in zip(momenta[t], velocity, g, strict=True)]
        params = [w + a * v for w, a, v in zip(params, rates[t], velocity, strict=True)]
    return problem.final(o, params, data)


def per_step(problem, o, rates):
    """A row of numbers, one per leaf, for every step."""
    if isinstance(rates, float):
        return [[rates] * problem.leaves] * problem.steps
    return [o.unstack(row) for row in o.unstack(rates)]
