"""The networks of this folder, as lists of params and functions of them: Xavier normal, biases 0.

Source: Micaelli and Storkey 2021, section 5; LeCun et al. 1998; Zagoruyko and Komodakis 2016.
"""

import numpy as np

from revgrad import nn


class Net:
    """shapes: of the weights, each followed by its bias. A call gives the logits."""

    shapes = ()

    def params(self, seed, dtype=np.float32):
        rng, found = np.random.default_rng(seed), []
        for shape in self.shapes:
            found += [nn.glorot_normal(rng, shape, dtype), np.zeros(shape[-1], dtype)]
        return found

    def loss(self, params, _, batch):
        return nn.softmax_cross_entropy(self(params, batch[0]), batch[1])


class Mlp(Net):
    """784-64-10, or of other inputs."""

    def __init__(self, inputs=784):
        self.shapes = (inputs, 64), (64, 10)

    def __call__(self, params, x):
        w1, b1, w2, b2 = params
        return nn.relu(np.reshape(x, (len(x), -1)) @ w1 + b1) @ w2 + b2


class LeNet(Net):
    """conv 5x5 (6), pool, conv 5x5 (16), pool, 120, 84, 10: 44,426 params for 28 x 28 x 1."""

    def __init__(self, size=28, channels=1):
        side = ((size - 4) // 2 - 4) // 2
        flat = side * side * 16
        self.shapes = (5, 5, channels, 6), (5, 5, 6, 16), (flat, 120), (120, 84), (84, 10)

    def __call__(self, params, x):
        for k in (0, 2):
            x = nn.max_pool(nn.relu(nn.conv2d(x, params[k], params[k + 1])), 2)
        x = np.reshape(x, (len(x), -1))
        for k in (4, 6):
            x = nn.relu(x @ params[k] + params[k + 1])
        return x @ params[8] + params[9]


class SmallConv(Net):
    """Three convolutions 3x3 of 8, 16, 32 channels, each with a pool, and 10."""

    shapes = (3, 3, 3, 8), (3, 3, 8, 16), (3, 3, 16, 32), (512, 10)

    def __call__(self, params, x):
        for k in (0, 2, 4):
            x = nn.conv2d(x, params[k], params[k + 1], padding="same")
            x = nn.max_pool(nn.relu(x), 2)
        return np.reshape(x, (len(x), -1)) @ params[6] + params[7]


class WideResNet(Net):
    """WRN-16-1, or deeper and wider: pre-activation, batch norm by the batch's own statistics.

    175,066 params. Validation and test see batches too, as the authors' hypergradients do.
    """

    def __init__(self, widths=(16, 16, 32, 64), blocks=2):
        self.plan = [
            (widths[s] if b == 0 else widths[s + 1], widths[s + 1], 1 + (s > 0 and b == 0))
            for s in range(3)
            for b in range(blocks)
        ]
        self.first, self.last = widths[0], widths[-1]

    def params(self, seed, dtype=np.float32):
        rng = np.random.default_rng(seed)
        weights = lambda *shape: nn.glorot_normal(rng, shape, dtype)
        norm = lambda n: (np.ones(n, dtype), np.zeros(n, dtype))
        blocks = [
            {"norms": [norm(n), norm(m)], "convs": [weights(3, 3, n, m), weights(3, 3, m, m)]}
            | ({"short": weights(1, 1, n, m)} if n != m or stride > 1 else {})
            for n, m, stride in self.plan
        ]
        dense = weights(self.last, 10), np.zeros(10, dtype)
        return {"first": weights(3, 3, 3, self.first), "blocks": blocks,
                "norm": norm(self.last), "dense": dense}  # fmt: skip

    def __call__(self, params, x):
        ready = lambda x, norm: nn.relu(nn.batch_norm(x, *norm)[0])
        x = nn.conv2d(x, params["first"], padding="same")
        for p, (_, _, stride) in zip(params["blocks"], self.plan, strict=True):
            inner = ready(x, p["norms"][0])
            short = nn.conv2d(inner, p["short"], stride=stride) if "short" in p else x
            inner = nn.conv2d(inner, p["convs"][0], stride=stride, padding="same")
            x = short + nn.conv2d(ready(inner, p["norms"][1]), p["convs"][1], padding="same")
        x = np.mean(ready(x, params["norm"]), axis=(1, 2))
        return x @ params["dense"][0] + params["dense"][1]
