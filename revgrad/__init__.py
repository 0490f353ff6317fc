"""Exact hypergradients: training as a differentiable function, run backwards bit for bit."""

from importlib.metadata import version as _version

from revgrad import interop
from revgrad.adjoints import (
    Checkpointed,
    Forward,
    Implicit,
    Reversible,
    Stored,
    Truncated,
    Unrolled,
)
from revgrad.compiled import compile, show
from revgrad.constraints import positive, simplex, unit_interval
from revgrad.custom import checkpoint, custom_rule
from revgrad.data import minibatches
from revgrad.diagnose import FragileHypergradient, diagnose
from revgrad.errors import (
    BufferEmpty,
    ClosureError,
    FixedOverflow,
    LeakedBox,
    LeftDomain,
    MissingRule,
    NotConverged,
    NotFinite,
    NotResumed,
    NotReversed,
    RatioRefused,
    RevgradError,
    StopRun,
)
from revgrad.hyper import per_step
from revgrad.implicit import CG, Neumann
from revgrad.linear_map import linearize
from revgrad.online import RTRL, Paths, fit
from revgrad.optimizers import (
    SGD,
    AdaDelta,
    AdaGrad,
    Adam,
    AdamW,
    HeavyBall,
    Leapfrog,
    Lion,
    Momentum,
    Nesterov,
    RMSProp,
)
from revgrad.outer import SignDescent, minimize
from revgrad.ratio import Ratio
from revgrad.report import Report
from revgrad.rules.indexing import at
from revgrad.scan import scan
from revgrad.state import FixedPoint
from revgrad.train import train
from revgrad.transforms import (
    elementwise_grad,
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
from revgrad.wrappers import AuxAverage, Clip, ClipByGlobalNorm, WeightAverage

__version__ = _version("revgrad")

__all__ = [
    "CG",
    "RTRL",
    "SGD",
    "AdaDelta",
    "AdaGrad",
    "Adam",
    "AdamW",
    "AuxAverage",
    "BufferEmpty",
    "Checkpointed",
    "Clip",
    "ClipByGlobalNorm",
    "ClosureError",
    "FixedOverflow",
    "FixedPoint",
    "Forward",
    "FragileHypergradient",
    "HeavyBall",
    "Implicit",
    "LeakedBox",
    "Leapfrog",
    "LeftDomain",
    "Lion",
    "MissingRule",
    "Momentum",
    "Nesterov",
    "Neumann",
    "NotConverged",
    "NotFinite",
    "NotResumed",
    "NotReversed",
    "Paths",
    "RMSProp",
    "Ratio",
    "RatioRefused",
    "Report",
    "Reversible",
    "RevgradError",
    "SignDescent",
    "StopRun",
    "Stored",
    "Truncated",
    "Unrolled",
    "WeightAverage",
    "at",
    "checkpoint",
    "compile",
    "custom_rule",
    "diagnose",
    "elementwise_grad",
    "fit",
    "grad",
    "hessian",
    "hvp",
    "interop",
    "jacfwd",
    "jacrev",
    "jvp",
    "linearize",
    "minibatches",
    "minimize",
    "per_step",
    "positive",
    "scan",
    "show",
    "simplex",
    "stop_gradient",
    "train",
    "unit_interval",
    "value_and_grad",
    "vjp",
]
