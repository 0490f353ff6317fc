"""PyTorch: `torch` unrolls with create_graph, `torch-plain` only trains.

`torch-func` and `torch-compile` keep the states and pull back through one step at a time by
torch.func.vjp of torch.func.grad; the second compiles the step and its pull-back with inductor,
which a graph made by create_graph cannot be.
"""

import torch

from . import unrolled

F = torch.nn.functional
PLACE = {"device": "cpu"}


class Ops:
    exp, tanh, sum, sigmoid, relu = torch.exp, torch.tanh, torch.sum, torch.sigmoid, torch.relu

    @staticmethod
    def unstack(x):
        return x.unbind()

    @staticmethod
    def cross_entropy(logits, y):
        return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), y.reshape(-1))

    @staticmethod
    def lookup(table, ids):
        return F.embedding(ids, table)

    @staticmethod
    def images(x):
        """(N, C, H, W) as PyTorch names the axes; in memory as it came, its channels-last."""
        return x.permute(0, 3, 1, 2)

    @staticmethod
    def conv(x, w, b, padding):
        return F.conv2d(x, w.permute(3, 2, 0, 1), b, padding=padding)

    @staticmethod
    def pool(x):
        return F.max_pool2d(x, 2)

    @staticmethod
    def flat(x):
        return x.permute(0, 2, 3, 1).reshape(x.shape[0], -1)

    @staticmethod
    def lstm(w, u, b, xs):
        """A loop of cells: the fused LSTM has no second derivative."""
        h = c = xs.new_zeros(xs.shape[1], u.shape[0])
        outputs = []
        for gates in (xs @ w + b).unbind():
            i, f, g, o = (gates + h @ u).chunk(4, -1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            outputs.append(h)
        return torch.stack(outputs)


def tensors(arrays):
    return {k: torch.tensor(v, device=PLACE["device"]) for k, v in arrays.items()}


def build(problem, name):
    data, rows = tensors(problem.data), problem.rows()
    rows = None if rows is None else tensors({"rows": rows})["rows"]
    if name == "torch-plain":
        return lambda: (plain(problem, data, rows), {})
    if name == "torch":
        return lambda: by_graph(problem, data, rows)
    return by_steps(problem, data, rows, compiled=name == "torch-compile")


def plain(problem, data, rows):
    """Train in place without a graph beyond one step's."""

    def gradient(loss, params):
        params = [w.detach().requires_grad_() for w in params]
        with torch.enable_grad():
            return torch.autograd.grad(loss(params), params)

    with torch.no_grad():
        theta = tensors(problem.theta)
        return unrolled.hyperloss(problem, Ops, theta, data, rows, gradient)


def by_graph(problem, data, rows):
    theta = {k: v.requires_grad_() for k, v in tensors(problem.theta).items()}

    def gradient(loss, params):
        params = [w if w.requires_grad else w.detach().requires_grad_() for w in params]
        return torch.autograd.grad(loss(params), params, create_graph=True)

    value = unrolled.hyperloss(problem, Ops, theta, data, rows, gradient)
    found = torch.autograd.grad(value, list(theta.values()), allow_unused=True)
    return value.detach(), dict(zip(theta, found, strict=True))


def by_steps(problem, data, rows, compiled):
    def step(params, velocity, rate, momentum, shared, x, y):
        g = torch.func.grad(lambda p: problem.loss(Ops, p, shared, x, y))(params)
        velocity = [m * v - (1 - m) * d for m, v, d in zip(momentum, velocity, g, strict=True)]
        params = [w + a * v for w, a, v in zip(params, rate, velocity, strict=True)]
        return params, velocity

    def pull(primals, x, y, cts):
        _, pullback = torch.func.vjp(lambda *some: step(*some, x, y), *primals)
        return pullback(cts)

    if compiled:
        step, pull = (torch.compile(f, fullgraph=True, dynamic=False) for f in (step, pull))
    final = torch.func.grad_and_value(lambda params: problem.final(Ops, params, data))

    def batch(t):
        x, y = data["x"], data["y"]
        return (x, y) if rows is None else (x[rows[t]], y[rows[t]])

    def inputs(theta):
        rates = problem.rates(Ops, theta)
        full = (problem.steps, problem.leaves)
        like = {"dtype": data["start"], "device": PLACE["device"]}
        rates = [torch.as_tensor(r, **like).expand(full) for r in rates]
        return *rates, problem.shared(Ops, theta), problem.start(Ops, theta, data)

    def run():
        (rates, momenta, shared, params), back = torch.func.vjp(inputs, tensors(problem.theta))
        velocity, primals = [torch.zeros_like(w) for w in params], []
        for t in range(problem.steps):
            primals.append((params, velocity, rates[t], momenta[t], shared))
            params, velocity = step(*primals[t], *batch(t))
        g, value = final(params)
        cts, ct_rates, ct_shared = (list(g), [0 * v for v in velocity]), [], None
        for t in reversed(range(problem.steps)):
            *cts, rate, momentum, ct = pull(primals[t], *batch(t), tuple(cts))
            ct_rates.append((rate, momentum))
            ct_shared = {k: ct[k] + (ct_shared[k] if ct_shared else 0) for k in ct}
        rate, momentum = (torch.stack(c[::-1]) for c in zip(*ct_rates, strict=True))
        return value, back((rate, momentum, ct_shared, cts[0]))[0]

    data["start"] = torch.float32 if problem.dtype == "float32" else torch.float64
    return run


def setup(dtype, threads, device="cpu"):
    """On a GPU products and convolutions are of full precision: TF32 is off."""
    torch.set_num_threads(threads)
    PLACE["device"] = device
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
