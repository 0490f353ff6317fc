"""Real-time recurrent learning of hyperparameters: influences of all past steps, carried forward.

Training is a recurrent network whose state is what the optimizer keeps, and whose parameters are
the hyperparameters h. At each step the influence matrix is pushed through it,

    d state' / dh  =  (d step / d state) (d state / dh)  +  d step / dh,

with exact products for the Hessian in it; the validation gradient at the new params, times the
influence, is the hypergradient. Source: Im, Savin and Cho 2021, sections 3 and 4.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import optree

from revgrad._ext import homes
from revgrad.arguments import check_batches
from revgrad.errors import NotFinite
from revgrad.gradient import Gradient
from revgrad.hyper import HyperTree, whole_number
from revgrad.online.basis import Basis, BoundedKnobs, like
from revgrad.online.curvature import Curvature, Differences
from revgrad.online.influence import Exact, RankOne, Shared
from revgrad.online.tower import Tower
from revgrad.optimizers import SGD
from revgrad.state import Values
from revgrad.statements import Optimizer
from revgrad.tuning import Tuner

PRODUCTS = {"exact": Curvature, "differences": Differences}


@dataclass(frozen=True, eq=False)
class RTRL(Tuner):
    """Hyperparameters follow the gradient of a validation loss through all steps taken so far.

        rg.SGD(0.01, weight_decay=0.0, tuned_by=rg.RTRL(valid_loss, valid_batches, 1e-5))

    valid_loss(params, batch) -> scalar, and its batches as `fit` has them for the loss; without
        them the loss of the next training batch takes their place, and its gradient is had anyway.
    learning_rate: of what learns, plain steps: a number, or by name {"learning_rate": 1e-5,
        "weight_decay": 1e-7}; or optimizer=, any of revgrad's, over that tree. What the bottom
        optimizer's `tuned` names learns, by its `transforms`; and
    hyper: True, or a tree prefix of bools: floats of the loss's hyper that learn as well, as
        "hyper". The loss uses what they learn one step later than the optimizer does its own.
    bounds: name -> (lowest, highest); what would leave them, or its domain, is put on their edge.
    every: learn at every so many steps; the influence is carried through all. reset: let it be 0
        again after so many steps; 1: only the latest step counts.
    shared: carry one influence for all values of a hyperparameter, as if they moved together, not
        one for each: cheaper, and what the paper calls layerwise; not exact.
    rank: carry this many random products in place of the matrix, whose expectation they have, for
        many hyperparameters; seed: of their signs.
    products: "exact", or "differences" as the authors' code has it (two gradients for each).
    diagnose: every so many steps, also find the cosine of successive gradients, and the norm of
        d params' / d params by power iteration (one product more).
    limit: a norm of an influence beyond which `fit` stops, with advice.

    Time: a validation gradient and a Hessian product for each number that learns (or row that is
    carried) per step; memory: vectors like the optimizer's state for each, and two like the
    params. `Paths` has "valid loss" and "influence of NAME", the Frobenius norm of d params / d
    NAME, besides what learns.
    With transforms, influences and bounds are of the raw numbers; factors near 1, as Adam's b1 and
    b2, want one ("sigmoid").
    Raises, in `fit`: NotFinite where an influence grows without bound; TypeError, ValueError.
    Source: Im, Savin and Cho 2021.
    """

    valid_loss: Any = field(default=None, repr=False)
    valid_batches: Any = field(default=None, repr=False)
    learning_rate: Any = None
    optimizer: Any = field(default=None, kw_only=True)
    hyper: Any = field(default=False, kw_only=True)
    bounds: Any = field(default=None, kw_only=True)
    every: int = field(default=1, kw_only=True)
    reset: Any = field(default=None, kw_only=True)
    shared: bool = field(default=False, kw_only=True)
    rank: Any = field(default=None, kw_only=True)
    seed: int = field(default=0, kw_only=True)
    products: str = field(default="exact", kw_only=True)
    diagnose: Any = field(default=None, kw_only=True)
    limit: float = field(default=1e9, kw_only=True)

    def __post_init__(self):
        if (self.valid_loss is None) != (self.valid_batches is None):
            raise TypeError("RTRL(valid_loss, valid_batches): pass both, or neither.")
        if self.valid_loss is not None and not callable(self.valid_loss):
            raise TypeError(
                f"RTRL(valid_loss) is a {type(self.valid_loss).__name__}; pass a function "
                "valid_loss(params, batch) -> scalar."
            )
        if (self.optimizer is None) == (self.learning_rate is None):
            raise TypeError("RTRL: pass either learning_rate=, e.g. 1e-5, or optimizer=.")
        if self.optimizer is not None and not isinstance(self.optimizer, Optimizer):
            raise TypeError(
                f"RTRL(optimizer=...) is a {type(self.optimizer).__name__}; pass one of revgrad's, "
                "e.g. Adam(1e-3)."
            )
        for name in ("every", "reset", "rank", "diagnose"):
            if getattr(self, name) is not None:
                whole_number(getattr(self, name), f"RTRL({name})", 1)
        if self.products not in PRODUCTS:
            raise ValueError(f"RTRL(products={self.products!r}); choose one of {[*PRODUCTS]}.")
        if self.shared and self.rank is not None:
            raise ValueError("RTRL(shared=True, rank=...): two ways to carry less; choose one.")
        if self.valid_loss is None and self.learns_hyper:
            raise ValueError(
                "RTRL(hyper=...) without valid_loss=: the training loss falls whenever its "
                "penalties do; pass a validation loss."
            )

    @property
    def learns_hyper(self):
        return any(map(bool, optree.tree_leaves(self.hyper)))

    def bind(self, fitting):
        return Influence(fitting, self)


class Influence(Tower):
    """The tuner: see `RTRL`. At the bottom the slope is the influence's, above it is a tower."""

    def __init__(self, fitting, rtrl):
        run, bottom = fitting.run, fitting.bottom
        self.fitting, self.rtrl, bottom.mode = fitting, rtrl, "push"
        self.moving, self.names, tree = _learning(run, fitting.values, rtrl.hyper)
        below = {name: run.layout_of(name) for name in run.spreads}
        more = {"hyper": tree} if self.moving else None
        bottom.knobs = BoundedKnobs(fitting.optimizer, run.spreads, below, more)
        bottom.knobs.narrow(rtrl.bounds)
        super().__init__(fitting, rtrl.optimizer or SGD(rtrl.learning_rate))
        self.curvature = PRODUCTS[rtrl.products](run, fitting.values, self.moving)
        fitting.gradient, self.valid = self.curvature, _validation(run, rtrl)
        kind = Shared if rtrl.shared else Exact if rtrl.rank is None else RankOne
        self.influence = kind(Basis(bottom, fitting.values, self.moving), bottom.state, rtrl)
        self.used, self.seen, self.kept = [], {}, {}
        if rtrl.diagnose:
            v = np.random.default_rng(rtrl.seed).standard_normal(run.layout.size)
            params, v = bottom.state["params"], (v / np.linalg.norm(v)).astype(bottom.dtype)
            self.kept = {"g": np.zeros_like(params), "v": homes.beside(v, params)}

    # Between a gradient and the step by it.

    def look(self, t, g):
        self.seen = {}
        if self._every("diagnose", t):
            self.seen["cosine of gradients"] = _cosine(g, self.kept["g"])
        if self._every("diagnose", t + 1):
            np.copyto(self.kept["g"], g)
        if t % self.rtrl.every == 0:
            super().look(t, g)

    def slope(self, t, g):
        if self.valid is not None:
            (value, _), g = self.valid.value(self.fitting.leaves(), t)
            self.seen["valid loss"] = float(value)
        return self.influence.slope(g)

    def move(self, t):
        hyper = self.fitting.values.hyper
        self.used, self.first = [hyper[k] for k in self.moving], False
        if t % self.rtrl.every == 0:
            super().move(t)

    def _hand_on(self):
        """Give the loss's hyper what it has learned."""
        knobs, hyper = self.levels[0].knobs, self.fitting.values.hyper
        if self.moving:
            now = like(knobs.raw[knobs.spans["hyper"]], self.used)
            for k, x in zip(self.moving, now, strict=True):
                hyper[k] = x

    # After the step.

    def follow(self, t):
        """Push the influence through the step just taken. Raises: NotFinite."""
        if self._every("reset", t):
            self.influence.clear()
        if self._every("diagnose", t):
            self.seen["norm of the step's Jacobian"] = self._iterate()
        self.influence.follow(self._push, t)
        for name, norm in self.influence.norms().items():
            self.seen[f"influence of {name}"] = norm
            if not norm <= self.rtrl.limit:
                raise NotFinite(self._blow_up(name, norm, t), step=t)
        self._hand_on()

    def _every(self, option, t):
        every = getattr(self.rtrl, option)
        return every is not None and t % every == 0

    def _push(self, row, knobs, hyper):
        """Turn the tangents of the variables before the step into those after it; None is zero."""
        bottom, t_g, still = self.levels[0], None, row is None
        if still:
            row = self._still()
        if not still or hyper is not None:
            t_g = self.curvature.product(row["params"], hyper)
        bottom.push(row, t_g, knobs)
        return row

    def _still(self):
        return {name: np.zeros_like(x) for name, x in self.levels[0].state.items()}

    def _iterate(self):
        """A step of power iteration; the norm so far."""
        row = self._still() | {"params": self.kept["v"]}
        v = self._push(row, {}, None)["params"]
        norm = float(np.sqrt(v @ v))
        v /= v.dtype.type(max(norm, 1e-30))
        return norm

    def _blow_up(self, name, norm, t):
        return (
            f"step {t}: the influence of {name} on the params has norm {norm:.3g}, above "
            f"{self.rtrl.limit:.3g}. It grows without bound where training is unstable, so that "
            "past steps count for ever more. Use a smaller learning rate for what learns (or to "
            "begin with), bounds= for it, or let the influence be forgotten: RTRL(reset=1000)."
        )

    # What there is to tell, and to keep.

    def values(self):
        """See Tower; also the loss's hyper as the latest step used it."""
        return super().values() | {
            name: x if type(x) is float else [x]
            for name, x in zip(self.names, self.used, strict=True)
        }

    def told(self):
        return self.seen

    def parts(self):
        seen = {f"seen {name}": np.array([x]) for name, x in self.seen.items()}
        kept = {f"kept {name}": x for name, x in self.kept.items()}
        return super().parts() | self.influence.parts() | seen | kept

    def load(self, parts):
        super().load(parts)
        self.influence.load(parts)
        for name, x in parts.items():
            group, _, rest = name.partition(" ")
            if group == "seen":
                self.seen[rest] = float(x[0])
            elif group == "kept":
                params = self.levels[0].state["params"]
                self.kept[rest] = homes.beside(x.astype(params.dtype), params)
        self.used = [self.fitting.values.hyper[k] for k in self.moving]
        self._hand_on()


def _learning(run, values, wanted):
    """(leaves of the loss's hyper that learn, names for them, they as a tree)."""
    tree = run.hyper_tree(values.hyper)
    paths, leaves, treedef = optree.tree_flatten_with_path(tree)
    try:
        flags = optree.broadcast_prefix(wanted, tree)
    except ValueError as error:
        raise TypeError(
            f"RTRL(hyper=...) is no prefix of the loss's hyper ({error}); pass True, or a tree of "
            "bools whose leaves stand for whole branches of it."
        ) from None
    moving = [j for j, i in enumerate(run.hyper_tree.floats) if flags[i]]
    if any(run.hyper_every[j] is not None for j in moving):
        raise TypeError(
            "RTRL(hyper=...): a leaf of hyper is a per_step and is to learn; let it be one or the "
            "other."
        )
    if wanted is not False and not moving:
        raise ValueError("RTRL(hyper=...): there are no floats in hyper that could learn.")
    found = [None] * len(leaves)
    for j in moving:
        found[run.hyper_tree.floats[j]] = np.asarray(homes.home(values.hyper[j]), np.float64)
    names = ["hyper" + "".join(f"[{p!r}]" for p in paths[run.hyper_tree.floats[j]]) for j in moving]
    return moving, names, optree.tree_unflatten(treedef, found)


def _validation(run, rtrl):
    """The Gradient of the validation loss, or None."""
    if rtrl.valid_loss is None:
        return None
    batch, _ = check_batches(rtrl.valid_batches, run.steps)
    bare = replace(
        run, loss=lambda params, _, batch: rtrl.valid_loss(params, batch), batch=batch,
        has_aux=False, hyper_tree=HyperTree(optree.tree_structure(None), [], []), hyper_every=(),
    )  # fmt: skip
    return Gradient(bare, Values([], {}, {}, []))


def _cosine(a, b):
    with np.errstate(all="ignore"):
        return float(a @ b / np.sqrt((a @ a) * (b @ b)))
