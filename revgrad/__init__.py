"""Exact hypergradients: training as a differentiable function, run backwards bit for bit."""

from importlib.metadata import version as _version

from revgrad.adjoints import Reversible, Stored, Unrolled
from revgrad.compiled import compile, show
from revgrad.constraints import positive, simplex, unit_interval
from revgrad.custom import checkpoint, custom_rule
from revgrad.data import minibatches
from revgrad.errors import (
    BufferEmpty,
    ClosureError,
    FixedOverflow,
    LeakedBox,
    MissingRule,
    NotReversed,
    RatioRefused,
    RevgradError,
    StopRun,
)
from revgrad.hyper import per_step
from revgrad.linear_map import linearize
from revgrad.optimizers import SGD, Adam, HeavyBall, Momentum
from revgrad.outer import minimize
from revgrad.ratio import Ratio
from revgrad.report import Report
from revgrad.state import FixedPoint
from revgrad.train import train
from revgrad.transforms import (
    grad,
    hessian,
    hvp,
    jacfwd,
    jacrev,
    jvp,
    stop_gradient,
    value_and_grad,
    vjp,
)

__version__ = _version("revgrad")

__all__ = [
    "SGD",
    "Adam",
    "BufferEmpty",
    "ClosureError",
    "FixedOverflow",
    "FixedPoint",
    "HeavyBall",
    "LeakedBox",
    "MissingRule",
    "Momentum",
    "NotReversed",
    "Ratio",
    "RatioRefused",
    "Report",
    "Reversible",
    "RevgradError",
    "StopRun",
    "Stored",
    "Unrolled",
    "checkpoint",
    "compile",
    "custom_rule",
    "grad",
    "hessian",
    "hvp",
    "jacfwd",
    "jacrev",
    "jvp",
    "linearize",
    "minibatches",
    "minimize",
    "per_step",
    "positive",
    "show",
    "simplex",
    "stop_gradient",
    "train",
    "unit_interval",
    "value_and_grad",
    "vjp",
]
