"""Optimizers as short lists of reversible statements; see `revgrad.statements`.

Names and defaults are optax's, and PyTorch's where optax has none. eps is added outside the root,
as PyTorch does; eps_root, where given, inside.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import optree

from revgrad.statements import Add, Optimizer, Scale, root

__all__ = ["Add", "Optimizer", "Scale"]


def _decayed(learning_rate, weight_decay):
    """What decoupled decay leaves of the params."""
    return 1 - learning_rate * weight_decay


def _descend(velocity, learning_rate):
    return -learning_rate * velocity


def _over_root(x, squares, eps, eps_root=None):
    return x / (root(squares if eps_root is None else squares + eps_root) + eps)


def _geometric(factor, steps):
    """The sum of the first `steps` powers of a factor."""
    return steps if factor >= 1 else min(1 / (1 - factor), steps)


@dataclass(frozen=True, eq=False)
class Momentum(Optimizer):
    """v <- momentum v - (1 - momentum) g;  params <- params + learning_rate v.

    The rate is the whole effective rate: 1 is a usual value. weight_decay is added to g, times the
    params. Reversible. Source: Maclaurin et al. 2015, algorithm 1; their code's way of
    rounding momenta is `train(..., arithmetic=FixedPoint(rounding="truncated"))`.
    """

    learning_rate: Any
    momentum: Any = 0.9
    weight_decay: Any = None
    statements: ClassVar = (
        Scale("velocity", by="momentum"),
        Add("velocity", lambda g, momentum: -(1 - momentum) * g),
        Add(
            "velocity",
            lambda params, momentum, weight_decay: -(1 - momentum) * weight_decay * params,
        ),
        Add("params", lambda velocity, learning_rate: learning_rate * velocity),
    )
    magnitudes: ClassVar = {"velocity": lambda g, params, weight_decay: g + weight_decay * params}


@dataclass(frozen=True, eq=False)
class HeavyBall(Optimizer):
    """v <- momentum v + g;  params <- params - learning_rate v. Reversible.

    weight_decay is added to g, times the params. PyTorch's SGD(momentum=...) and
    optax.sgd(momentum=...). Source: Polyak 1964.
    """

    learning_rate: Any
    momentum: Any = 0.9
    weight_decay: Any = None
    statements: ClassVar = (
        Scale("velocity", by="momentum"),
        Add("velocity", lambda g: g),
        Add("velocity", lambda params, weight_decay: weight_decay * params),
        Add("params", _descend),
    )
    magnitudes: ClassVar = {
        "velocity": lambda g, params, weight_decay, momentum, steps: (
            (g + weight_decay * params) * _geometric(momentum, steps)
        )
    }


@dataclass(frozen=True, eq=False)
class Nesterov(Optimizer):
    """v <- momentum v + g;  params <- params - learning_rate (g + momentum v).

    Not reversible: it overwrites what g was taken at. weight_decay is added to g, times the params.
    PyTorch's and optax's sgd(nesterov=True). Source: Nesterov 1983; Sutskever et al. 2013.
    """

    learning_rate: Any
    momentum: Any = 0.9
    weight_decay: Any = None
    statements: ClassVar = (
        *HeavyBall.statements[:3],
        Scale("params", by=_decayed, given="weight_decay"),
        Add(
            "params",
            lambda g, velocity, learning_rate, momentum: -learning_rate * (g + momentum * velocity),
        ),
    )
    magnitudes: ClassVar = HeavyBall.magnitudes


@dataclass(frozen=True, eq=False)
class SGD(Optimizer):
    """params <- params - learning_rate g. Not reversible: it overwrites what g was taken at.

    weight_decay is added to g, times the params. Source: Robbins and Monro 1951.
    """

    learning_rate: Any
    weight_decay: Any = None
    statements: ClassVar = (
        Scale("params", by=_decayed),
        Add("params", lambda g, learning_rate: -learning_rate * g),
    )


@dataclass(frozen=True, eq=False)
class Adam(Optimizer):
    """Adam with bias correction; eps outside the root. Reversible. Source: Kingma and Ba 2015.

    The second moment starts at 0, where the derivative of its square root is taken as 0, or at
    initial_scale (Chandra et al. 2022: eps). eps_root is added inside the root, which
    hypergradients of weights with small gradients may need; see Report.drowned.
    """

    learning_rate: Any
    b1: Any = 0.9
    b2: Any = 0.999
    eps: Any = 1e-8
    eps_root: Any = None
    initial_scale: Any = None
    initial: ClassVar = {"second_moment": "initial_scale"}
    magnitudes: ClassVar = {"second_moment": lambda g: g * g}
    statements: ClassVar = (
        Scale("first_moment", by="b1"),
        Add("first_moment", lambda g, b1: (1 - b1) * g),
        Scale("second_moment", by="b2"),
        Add("second_moment", lambda g, b2: (1 - b2) * g * g),
        Add(
            "params",
            lambda first_moment, second_moment, learning_rate, b1, b2, eps, t, eps_root=None: (
                -learning_rate
                * _over_root(first_moment / (1 - b1**t), second_moment / (1 - b2**t), eps, eps_root)
            ),
        ),
    )


@dataclass(frozen=True, eq=False)
class AdamW(Optimizer):
    """Adam, with params <- (1 - learning_rate weight_decay) params before each step. Reversible.

    Source: Loshchilov and Hutter 2019. weight_decay=1e-4 is optax's default; PyTorch's is 1e-2.
    """

    learning_rate: Any
    b1: Any = 0.9
    b2: Any = 0.999
    eps: Any = 1e-8
    weight_decay: Any = 1e-4
    eps_root: Any = None
    initial_scale: Any = None
    initial: ClassVar = Adam.initial
    magnitudes: ClassVar = Adam.magnitudes
    optional: ClassVar = ("weight_decay",)
    statements: ClassVar = (
        *Adam.statements[:4],
        Scale("params", by=_decayed),
        Adam.statements[4],
    )


# Steps over the root of squares. With momentum it is a velocity that takes them in, and training
# can be undone.

_SMOOTHED = (
    Scale("velocity", by="momentum"),
    Add(
        "velocity",
        lambda g, second_moment, eps, eps_root=None: _over_root(g, second_moment, eps, eps_root),
        given="momentum",
    ),
    Add("params", _descend, given="momentum"),
    Add(
        "params",
        lambda g, second_moment, learning_rate, eps, eps_root=None: (
            -learning_rate * _over_root(g, second_moment, eps, eps_root)
        ),
        unless="momentum",
    ),
)


@dataclass(frozen=True, eq=False)
class RMSProp(Optimizer):
    """s <- decay s + (1 - decay) g^2; a step of learning_rate g / (root of s + eps).

    Reversible with momentum: v <- momentum v + g / (root of s + eps); params <- params -
    learning_rate v. PyTorch's; optax's with eps_in_sqrt=False, or with eps=0 and eps_root its eps.
    PyTorch's default decay (alpha) is 0.99. Source: Tieleman and Hinton 2012.
    """

    learning_rate: Any
    decay: Any = 0.9
    eps: Any = 1e-8
    momentum: Any = None
    eps_root: Any = None
    initial_scale: Any = None
    initial: ClassVar = Adam.initial
    magnitudes: ClassVar = {
        "second_moment": lambda g: g * g,
        "velocity": lambda momentum, decay, steps: (
            _geometric(momentum, steps) * max(1 - decay, 1e-6) ** -0.5
        ),
    }
    statements: ClassVar = (
        Scale("second_moment", by="decay"),
        Add("second_moment", lambda g, decay: (1 - decay) * g * g),
        *_SMOOTHED,
    )


@dataclass(frozen=True, eq=False)
class AdaGrad(Optimizer):
    """s <- s + g^2; a step of learning_rate g / (root of s + eps).

    Reversible with momentum, as RMSProp is. PyTorch's; its s starts at 0, as here, and optax's at
    0.1; that is initial_accumulator_value. Source: Duchi et al. 2011.
    """

    learning_rate: Any
    eps: Any = 1e-10
    momentum: Any = None
    eps_root: Any = None
    initial_accumulator_value: Any = None
    initial: ClassVar = {"second_moment": "initial_accumulator_value"}
    magnitudes: ClassVar = {
        "second_moment": lambda g, steps: g * g * steps,
        "velocity": lambda momentum, steps: _geometric(momentum, steps),
    }
    statements: ClassVar = (Add("second_moment", lambda g: g * g), *_SMOOTHED)


@dataclass(frozen=True, eq=False)
class AdaDelta(Optimizer):
    """A step of g times the root of past steps' mean square over that of past gradients.

    eps is inside both roots. Not reversible: `step` is forgotten, and its statement reads g.
    PyTorch's and optax's. Source: Zeiler 2012.
    """

    learning_rate: Any = 1.0
    rho: Any = 0.9
    eps: Any = 1e-6
    magnitudes: ClassVar = {
        "second_moment": lambda g: g * g,
        "step": lambda: 1.0,
        "squared_steps": lambda: 1.0,
    }
    statements: ClassVar = (
        Scale("second_moment", by="rho"),
        Add("second_moment", lambda g, rho: (1 - rho) * g * g),
        Scale("step", by=0),
        Add(
            "step",
            lambda g, second_moment, squared_steps, eps: (
                np.sqrt(squared_steps + eps) / np.sqrt(second_moment + eps) * g
            ),
        ),
        Scale("squared_steps", by="rho"),
        Add("squared_steps", lambda step, rho: (1 - rho) * step * step),
        Add("params", lambda step, learning_rate: -learning_rate * step),
    )


@dataclass(frozen=True, eq=False)
class Lion(Optimizer):
    """A step of learning_rate in the direction of the sign of b1 m + (1 - b1) g, with decay.

    Not reversible: it overwrites what g was taken at. The derivative of the sign is 0.
    Source: Chen et al. 2023.
    """

    learning_rate: Any
    b1: Any = 0.9
    b2: Any = 0.99
    weight_decay: Any = 1e-3
    optional: ClassVar = ("weight_decay",)
    statements: ClassVar = (
        Scale("params", by=_decayed),
        Add(
            "params",
            lambda g, first_moment, learning_rate, b1: (
                -learning_rate * _sign(b1 * first_moment + (1 - b1) * g)
            ),
        ),
        Scale("first_moment", by="b2"),
        Add("first_moment", lambda g, b2: (1 - b2) * g),
    )


def _sign(x):
    return np.where(x > 0, 1.0, np.where(x < 0, -1.0, 0.0 * x))


@dataclass(frozen=True, eq=False)
class Leapfrog(Optimizer):
    """Hamilton's equations for the energy loss(params) + momentum^2 / (2 mass). Reversible.

    Each step kicks the momentum by step_size times -g, and lets the params drift; the first kick is
    a half one, so that the momentum is half a step ahead of the params, and `close` gives the other
    half after the last step. mass: a number, one per layer, or one per weight; 1 where absent.
    tempering: what the momentum is multiplied by before each kick; above 1 heats, below 1 cools; a
    usual schedule is rg.per_step([a] * (steps // 2) + [1 / a] * (steps // 2)).
    The momentum starts at state={"momentum": ...}, or at 0. Source: Neal 2011, section 5.

        x, state = rg.train(energy, x, leapfrog, batches, state={"momentum": p}, return_state=True)
        p = leapfrog.close(state["momentum"], rg.grad(energy)(x, None, batch))
    """

    step_size: Any
    mass: Any = None
    tempering: Any = None
    magnitudes: ClassVar = {"momentum": lambda g, step_size: g * step_size}
    statements: ClassVar = (
        Scale("momentum", by="tempering", above_one=True),
        Add("momentum", lambda g, step_size, t: -np.where(t == 1, 0.5, 1.0) * step_size * g),
        Add("params", lambda momentum, step_size: step_size * momentum, unless="mass"),
        Add("params", lambda momentum, step_size, mass: step_size * momentum / mass),
    )

    def close(self, momentum, g):
        """The momentum at the time of the params: half a kick later. g: the gradient there."""
        size = optree.tree_unflatten(
            optree.tree_structure(g), optree.broadcast_prefix(self.step_size, g)
        )
        return optree.tree_map(lambda p, g, size: p - 0.5 * size * g, momentum, g, size)
