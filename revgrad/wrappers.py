"""Optimizers around an optimizer: clipping, averages of the params and of what the loss returns.

A wrapper rewrites the statements of what it wraps, or adds to them, so it is reversible wherever
that is. Its own hyperparameters and variables come beside the wrapped ones; where a name is taken,
they get an underscore.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from revgrad.statements import Add, Optimizer, Scale, hyper_fields


@dataclass(frozen=True, eq=False)
class Wrapper(Optimizer):
    """Base of wrappers: `added` comes after the statements of `optimizer`.

    rewrites: what its statements read -> a function that they read instead; its arguments are what
    is read, as a statement sees it, and own hyperparameters.
    """

    optimizer: Optimizer
    added: ClassVar[tuple] = ()
    rewrites: ClassVar[dict] = {}

    def __post_init__(self):
        if not isinstance(self.optimizer, Optimizer):
            raise TypeError(
                f"{type(self).__name__} wraps a {type(self.optimizer).__name__}; pass an optimizer "
                "first, e.g. Momentum(0.1)."
            )
        if self.optimizer.tuned_by is not None:
            raise TypeError(
                f"{type(self).__name__} wraps {self.optimizer!r}; tune the whole: "
                f"{type(self).__name__}({self.optimizer.name}(...), ..., tuned_by=...)."
            )
        inner = tuple(_rewritten(s, self.rewrites, self._names) for s in self.optimizer.statements)
        added = tuple(_renamed(s, self._names) for s in self.added)
        object.__setattr__(self, "statements", inner + added)
        super().__post_init__()

    @property
    def _names(self):
        """Own hyperparameters and variables -> what they are called in the statements."""
        taken = {*self.optimizer.hyper, *self.optimizer.variables}
        own = [*self._own, *(s.target for s in self.added)]
        return {name: _free(name, taken) for name in own}

    @property
    def _own(self):
        return [f.name for f in hyper_fields(self) if f.name != "optimizer"]

    @property
    def name(self):
        return f"{type(self).__name__}({self.optimizer.name})"

    @property
    def hyper(self):
        return self.optimizer.hyper | {self._names[k]: getattr(self, k) for k in self._own}

    def with_hyper(self, values):
        own = {k: values[now] for k, now in self._names.items() if now in values}
        rest = {k: v for k, v in values.items() if k in self.optimizer.hyper}
        return replace(self, optimizer=self.optimizer.with_hyper(rest), **own)

    @property
    def initial(self):
        own = {self._names[k]: self._names.get(v, v) for k, v in type(self).starts.items()}
        return self.optimizer.initial | own

    starts: ClassVar[dict] = {}  # own variables -> what they start at, as `initial`

    @property
    def magnitudes(self):
        return self.optimizer.magnitudes | {
            self._names[k]: f for k, f in type(self).expected.items()
        }

    expected: ClassVar[dict] = {}  # own variables -> how large they may be, as `magnitudes`


def _free(name, taken):
    while name in taken:
        name += "_"
    return name


def _renamed(s, names):
    """A statement whose target and reads are called otherwise."""
    sources = {k: names.get(k, k) for k in s.reads}
    changes = {"target": names.get(s.target, s.target), "reads": tuple(sources.values())}
    if isinstance(s, Scale) and isinstance(s.by, str):
        return replace(s, by=sources[s.by], **changes)
    kind = "by" if isinstance(s, Scale) else "delta"
    return replace(s, **{kind: _calling(getattr(s, kind), sources, {})}, **changes)


def _rewritten(s, rewrites, names):
    """A statement that reads something else instead of what it reads."""
    made = {k: _renamed(Add("", f), names) for k, f in rewrites.items() if k in s.reads}
    if not made:
        return s
    needed = [n for m in made.values() for n in m.reads]
    reads = tuple(dict.fromkeys([n for n in s.reads if n not in made] + needed))
    return replace(s, delta=_calling(s.delta, {k: k for k in s.reads}, made), reads=reads)


def _calling(function, sources, made):
    """function, of arguments that are called otherwise or made by statements' functions."""

    def called(**reads):
        return function(
            **{
                k: made[k].delta(**{n: reads[n] for n in made[k].reads})
                if k in made
                else reads[source]
                for k, source in sources.items()
            }
        )

    return called


@dataclass(frozen=True, eq=False)
class Clip(Wrapper):
    """Each entry of g is held within [-max_delta, max_delta] before the optimizer sees it.

    optax.clip, torch.nn.utils.clip_grad_value_. Coupled weight decay is added after clipping.
    """

    max_delta: Any
    rewrites: ClassVar = {
        "g": lambda g, max_delta: np.where(
            g > max_delta, max_delta, np.where(g < -max_delta, -max_delta, g)
        )
    }

    def __post_init__(self):
        super().__post_init__()
        if "g_norm" in self.optimizer.reads:
            raise TypeError(
                f"{self.name}: {self.optimizer.name} reads g_norm, the norm of g before clipping "
                "by value; put ClipByGlobalNorm outside: ClipByGlobalNorm(Clip(...), max_norm)."
            )


def _share(g_norm, max_norm):
    """What clipping leaves of g."""
    inside = g_norm < max_norm
    return np.where(inside, 1.0, max_norm / np.where(inside, 1.0, g_norm))


@dataclass(frozen=True, eq=False)
class ClipByGlobalNorm(Wrapper):
    """g is scaled down to the norm max_norm, over all params, before the optimizer sees it.

    optax.clip_by_global_norm; torch.nn.utils.clip_grad_norm_ but for its 1e-6. Coupled weight decay
    is added after clipping. Source: Pascanu et al. 2013.
    """

    max_norm: Any
    rewrites: ClassVar = {
        "g": lambda g, g_norm, max_norm: _share(g_norm, max_norm) * g,
        "g_norm": lambda g_norm, max_norm: _share(g_norm, max_norm) * g_norm,
    }


@dataclass(frozen=True, eq=False)
class WeightAverage(Wrapper):
    """An exponential average of the params after each step, in the state variable "average".

    average <- decay average + (1 - decay) params. It starts at the initial params, as a copy, so it
    needs no correction and params0 have a derivative through it. Read it from the state:
    trained, state = rg.train(..., return_state=True); state["average"].
    PyTorch's AveragedModel(multi_avg_fn=get_ema_multi_avg_fn(decay)), which starts a step later.
    Source: Polyak and Juditsky 1992.
    """

    decay: Any = 0.999
    added: ClassVar = (
        Scale("average", by="decay"),
        Add("average", lambda params, decay: (1 - decay) * params),
    )
    starts: ClassVar = {"average": "params"}


@dataclass(frozen=True, eq=False)
class AuxAverage(Wrapper):
    """An exponential average of the loss's aux, in the state variable "aux_average".

    For statistics such as batch normalisation's: the loss returns (scalar, tree of floats) and
    has_aux=True. It starts at 0, or at state={"aux_average": ...}; from 0, dividing by
    1 - decay**steps makes it unbiased. Differentiable, through the loss, in params and hyper.
    """

    decay: Any = 0.9
    added: ClassVar = (
        Scale("aux_average", by="decay"),
        Add("aux_average", lambda aux, decay: (1 - decay) * aux),
    )
    expected: ClassVar = {"aux_average": lambda aux: aux}
