"""How the derivative of training gets hold of the earlier states: what a user chooses.

Each adjoint runs one program forwards, remembering something (memories.py), and then supplies the
steps' linearizations last first. It never owns the arithmetic, so those that should agree do, to
the bit: `Reversible`, `Stored` and `Checkpointed`.
"""

from dataclasses import dataclass, field, fields
from typing import Any

from revgrad.hyper import whole_number
from revgrad.implicit import CG
from revgrad.memories import Copies, Digests, Last, Nothing, Snapshots, state_bytes
from revgrad.wrappers import Clip

UNITS = {"B": 1, "kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}
UNITS |= {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


@dataclass(frozen=True)
class Reversible:
    """Undo each step, bit for bit. Memory beyond one state: T N log2(d/n) bits. First order only.

    Every factor must be in (0, 1], and the optimizer reversible; others are refused with advice.
    The pull-back raises NotReversed, with the step range, unless it arrives at the integers, heads
    and words that it started from. Source: Maclaurin et al. 2015, algorithms 2 and 3.
    """

    exact, keep, saves = True, True, True

    def check(self, optimizer):
        if not optimizer.reversible:
            raise TypeError(
                f"Reversible() cannot undo {optimizer.name}: some update of 'params' comes between "
                "two readings of the gradient that undoing needs, or reads g at the params it "
                "overwrites. Use Momentum, HeavyBall or Adam, or adjoint=Checkpointed(20), "
                "Stored() or Unrolled()."
            )

    def remember(self, program):
        return Digests(program)


@dataclass(frozen=True)
class Stored:
    """Keep a copy of every state. Memory: T states. Any optimizer, any real factor; first order.

    Where `Reversible()` works too, the hypergradients of the two are equal to the bit.
    """

    exact, keep, saves = False, False, False

    def check(self, optimizer):
        """Takes every optimizer."""

    def remember(self, program):
        return Copies(program)


@dataclass(frozen=True, repr=False)
class Checkpointed:
    """Keep `snapshots` states and replay the steps between. Any optimizer, any real factor.

    snapshots: how many states are kept, that of the start included. memory: or as many as fit,
        "200MB" or a number of bytes. With k snapshots and C(k + r, r) steps, the run is taken about
        r times more (`report.replays`), which is the fewest possible. A second pull-back replays
        the run from its start. First order; equal to `Stored()` to the bit.
    Source: Griewank and Walther 2000.
    """

    snapshots: int | None = None
    memory: Any = None
    exact, keep, saves = False, False, True

    def __post_init__(self):
        if (self.snapshots is None) == (self.memory is None):
            raise TypeError(
                "Checkpointed needs either a number of snapshots or a memory: Checkpointed(20), or "
                'Checkpointed(memory="200MB").'
            )
        if self.memory is not None:
            bytes_of(self.memory)
        else:
            whole_number(self.snapshots, "snapshots", 1)

    def __repr__(self):
        many = self.snapshots if self.memory is None else f"memory={self.memory!r}"
        return f"Checkpointed({many})"

    def check(self, optimizer):
        """Takes every optimizer."""

    def remember(self, program):
        if self.snapshots is not None:
            return Snapshots(program, whole_number(self.snapshots, "snapshots", 1))
        return _AsManyAsFit(program, bytes_of(self.memory))


class _AsManyAsFit(Snapshots):
    """Snapshots whose number follows from the first state's size."""

    def __init__(self, program, memory):
        super().__init__(program, 1)
        self.memory = memory

    def before(self, t, state):
        if not self.kept:
            each = state_bytes(state.copy())
            self.count = self.memory // each
            if not self.count:
                raise ValueError(
                    f"Checkpointed(memory={self.memory}) holds no state, which takes {each} bytes; "
                    "allow several, or use Reversible()."
                )
        super().before(t, state)


@dataclass(frozen=True, repr=False)
class Truncated:
    """Pull back through the last `steps` steps alone. Memory: as many states. Biased; first order.

    The state before them counts as given: the initial params and state get a derivative of zero
    unless the run is no longer than that. Any optimizer, any real factor.
    """

    steps: int
    exact, keep, saves = False, False, False

    def __post_init__(self):
        whole_number(self.steps, "Truncated(steps)", 1)

    def __repr__(self):
        return f"Truncated({self.steps})"

    def check(self, optimizer):
        """Takes every optimizer."""

    def remember(self, program):
        return Last(program, whole_number(self.steps, "Truncated(steps)", 1))


@dataclass(frozen=True, repr=False)
class Forward:
    """Carry the derivative along while training, a tangent per traced number. First order.

    Needs no earlier states: memory and time grow with the number of traced numbers that `train`
    is given, not with the steps: per number a product with the Hessian at each step, and the size
    of the state. Numbers of a `per_step` cost nothing before their first step. In forward mode
    (jvp, jacfwd) it carries the one direction. More tangents than fit in `memory` are refused. Any
    optimizer, any real factor; without the options below equal to the others up to rounding, that
    of float32 where all params are float32, as their tangents then are too; else of float64.

    The options are those of Micaelli and Storkey 2021, *Gradient-based Hyperparameter Optimization
    over Long Horizons* (FDS), whose Z are the tangents of the params (their eq. 5 to 7 and
    appendix A); each changes what is computed, and none is on by default:

    clip_products: hold each entry of the tangents of g (H Z) within +-this, at every step; they
        take 10, which keeps tangents finite where curvature is large.
    skip: share of the steps, spread evenly, at which tangents stay what they are (their pruning of
        alternate steps, at most 0.15; their code rounds the share to one over a whole number).
    average: divide what belongs to a hyperparameter by the number of steps that shared its value
        and were not skipped. In reverse mode.
    first_order: leave out the products with the Hessian (H = 0), which they find too crude.
    transposed_clip: for `Clip(optimizer, c)`. Its tangent is mask * (H Z), with the mask of the
        entries that were not clipped; their code differentiates the clipped gradient in reverse
        mode and gets H (mask * Z). Equal where nothing is clipped.
    """

    memory: Any = "1GB"
    clip_products: float | None = field(default=None, kw_only=True)
    skip: float = field(default=0.0, kw_only=True)
    average: bool = field(default=False, kw_only=True)
    first_order: bool = field(default=False, kw_only=True)
    transposed_clip: bool = field(default=False, kw_only=True)
    exact, keep, saves = False, False, True

    def __post_init__(self):
        bytes_of(self.memory)
        if not 0 <= self.skip < 1:
            raise ValueError(f"Forward(skip={self.skip!r}); a share of the steps, in [0, 1).")
        if self.clip_products is not None and not self.clip_products > 0:
            raise ValueError(
                f"Forward(clip_products={self.clip_products!r}); a positive number, or None."
            )

    def __repr__(self):
        given = [(f.name, getattr(self, f.name), f.default) for f in fields(self)]
        said = [f"{k}={v!r}" for k, v, usual in given if k == "memory" or v != usual]
        return f"Forward({', '.join(said)})"

    def check(self, optimizer):
        """Takes every optimizer; with transposed_clip `Clip` alone."""
        if self.transposed_clip and type(optimizer) is not Clip:
            raise TypeError(
                f"Forward(transposed_clip=True) is about Clip(optimizer, bound), not "
                f"{optimizer.name}; leave it out, or put the clipping outermost."
            )

    def remember(self, program):
        return Nothing()

    def skips(self, t):
        """Whether the tangents stay what they are at step t."""
        return int((t + 1) * self.skip) > int(t * self.skip)


@dataclass(frozen=True, eq=False)
class Implicit:
    """The derivative of the optimum, whatever way led there: with respect to `hyper` alone.

    loss, batch: what the params minimise in the end, loss(params, hyper, batch), e.g. the loss on
        all data. solver: `CG()` or `Neumann(rate)`, for the system with the Hessian of that loss.
    tolerance: how far from the optimum the params may end, relative to their length; farther
        away NotConverged is raised.
    Traced initial params, state and optimizer hyperparameters are refused: the optimum does not
    depend on them. Source: Bengio 2000; Lorraine et al. 2020.
    """

    loss: Any = field(repr=False)
    batch: Any = field(default=None, repr=False)
    solver: Any = field(default_factory=CG)
    tolerance: float = 1e-3
    exact, keep, saves = False, False, False

    def __post_init__(self):
        if not callable(self.loss):
            raise TypeError(
                f"Implicit(loss) is a {type(self.loss).__name__}; pass the loss that the params "
                "minimise, loss(params, hyper, batch)."
            )
        if isinstance(self.solver, type) or not hasattr(self.solver, "solve"):
            raise TypeError(
                f"Implicit(solver={self.solver!r}); pass CG() or Neumann(rate) (an instance)."
            )

    def check(self, optimizer):
        """Takes every optimizer."""

    def remember(self, program):
        return Nothing()


@dataclass(frozen=True)
class Unrolled:
    """Plain float training on the tape. Memory: T states and activations. Any order of derivative.

    Factors are used as given, not snapped to ratios. The oracle for the other adjoints.
    """

    saves = False

    def check(self, optimizer):
        """Takes every optimizer."""


def bytes_of(memory):
    """A number of bytes from one, or from text such as "200MB". Raises: ValueError."""
    amount, unit = memory, "B"
    if isinstance(memory, str):
        number = memory.rstrip("BKMGTki ")
        amount, unit = number, memory[len(number) :].strip() or "B"
    try:
        found = int(float(amount) * UNITS[unit])
    except (KeyError, ValueError, TypeError, OverflowError):
        found = 0
    if found < 1:
        raise ValueError(
            f'memory={memory!r}; a number of bytes or a text such as "200MB" is wanted.'
        )
    return found
