"""What is carried of the influence matrix, d state / d what learns: all of it, or less.

A row is the tangent of all variables in one direction of what learns. `push(row, knobs, hyper)`
turns it into the next one in place, and gives it; from None, what the direction adds alone. knobs
are tangents of hyperparameters by name, hyper of the loss's hyper, None for zero.
"""

import numpy as np

from revgrad._ext import homes


class Rows:
    """Tangents of the variables, a row each.

    count: how many; state: variable -> flat vector, of whose kind they are.
    """

    def __init__(self, count, state):
        make = lambda x: homes.zeros_beside((count, x.size), x.dtype, x)
        self.tangents = {name: make(x) for name, x in state.items()}
        self.count = count

    def __getitem__(self, k):
        return {name: x[k] for name, x in self.tangents.items()}

    @property
    def params(self):
        return self.tangents["params"]

    def clear(self):
        for x in self.tangents.values():
            x[...] = 0


class Exact:
    """The whole matrix: a row for each number that learns. `basis`: see `Basis`."""

    def __init__(self, basis, state, _options):
        self.basis, self.rows = basis, Rows(basis.size, state)
        self.squares = [0.0] * self.rows.count  # of the lengths of what is of the params

    def follow(self, push, _t):
        for k in range(self.rows.count):
            self._follow(push, k, *self.basis.unit(k))

    def _follow(self, push, k, knobs, hyper):
        x = push(self.rows[k], knobs, hyper)["params"]
        self.squares[k] = x @ x  # now that it is in cache

    def slope(self, ct):
        """Derivative of the loss by what learns, from its cotangent of the params."""
        return homes.home(self.rows.params @ ct).astype(np.float64)

    def norms(self):
        """Name -> Frobenius norm of d params / d that hyperparameter."""
        squares = homes.home(np.stack(self.squares)).astype(float)
        return {n: float(np.sqrt(squares[s].sum())) for n, s in self.basis.spans.items()}

    def clear(self):
        self.rows.clear()

    def parts(self):
        return {f"influence {n}": x.ravel() for n, x in self.rows.tangents.items()}

    def load(self, parts):
        for name, x in self.rows.tangents.items():
            x[...] = homes.beside(parts[f"influence {name}"].reshape(x.shape), x)


class Shared(Exact):
    """A row for each hyperparameter, of moving all of its values together: a layer's part of that
    row stands for its own influence. Im et al.'s layerwise variant: not exact, as a layer's rate
    moves the other layers too; the slopes of all values still have the exact sum."""

    def __init__(self, basis, state, _options):
        self.basis, self.names = basis, basis.shared()
        self.rows, self.squares = Rows(len(self.names), state), [0.0] * len(self.names)

    def follow(self, push, _t):
        for k, (_, span) in enumerate(self.names):
            self._follow(push, k, *self.basis.together(span))

    def slope(self, ct):
        out = np.empty(self.basis.size)
        for row, (name, span) in zip(self.rows.params, self.names, strict=True):
            out[span] = self.basis.split(name, row * ct) if name else homes.home(row @ ct)
        return out

    def norms(self):
        found = {}
        for square, (_, span) in zip(self.squares, self.names, strict=True):
            name = next(n for n, s in self.basis.spans.items() if s.start <= span.start < s.stop)
            found[name] = float(np.sqrt(found.get(name, 0.0) ** 2 + square))
        return found


class RankOne(Exact):
    """The mean of several products of a row and a vector, each with the matrix as expectation.

    A step adds (what it makes of random signs) times the signs to the matrix pushed forward; signs
    are independent, so cross terms have mean 0. Scales keep the two factors alike in length.
    Source: Tallec and Ollivier 2018, with signs over what learns in place of the state, so that no
    transposed product is needed.
    """

    def __init__(self, basis, state, options):
        self.basis, self.seed = basis, options.seed
        self.rows = Rows(options.rank, state)
        self.weights = np.zeros((options.rank, basis.size))

    def follow(self, push, t):
        signs = np.random.default_rng((self.seed, t)).integers(0, 2, self.weights.shape) * 2.0 - 1
        for k, sign in enumerate(signs):
            row = push(self.rows[k], {}, None)  # what was, moved on
            new = push(None, *self.basis.along(sign))
            old = _balance(_length(self.weights[k]), _length(*row.values()))
            fresh = _balance(_length(sign), _length(*new.values()))
            for name, x in row.items():
                x *= old
                x += x.dtype.type(fresh) * new[name]
            self.weights[k] = self.weights[k] / old + sign / fresh

    def slope(self, ct):
        return homes.home(self.rows.params @ ct) @ self.weights / self.rows.count

    def norms(self):
        products, found = homes.home(self.rows.params @ self.rows.params.T), {}
        for name, span in self.basis.spans.items():
            w = self.weights[:, span]
            found[name] = float(np.sqrt(max(0.0, np.sum(products * (w @ w.T))))) / self.rows.count
        return found

    def matrix(self):
        """The estimate of d params / d what learns: (numbers that learn, weights)."""
        return self.weights.T @ homes.home(self.rows.params) / self.rows.count

    def clear(self):
        self.rows.clear()
        self.weights[...] = 0

    def parts(self):
        return super().parts() | {"weights": self.weights.ravel()}

    def load(self, parts):
        super().load(parts)
        self.weights[...] = parts["weights"].reshape(self.weights.shape)


def _length(*parts):
    return float(np.sqrt(sum(float(x @ x) for x in parts)))


def _balance(right, left):
    """The factor that makes `left` as long as `right` becomes."""
    return (right / left) ** 0.5 if right > 0 and left > 0 else 1.0
