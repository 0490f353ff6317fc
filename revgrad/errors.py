"""Exceptions that a caller may want to catch; each docstring gives the cause and the cure."""


class RevgradError(Exception):
    """Base of every exception that revgrad defines."""


class FixedOverflow(RevgradError, OverflowError):
    """A value left the range of its fixed-point numbers, or was NaN or infinite.

    The state is as it was before the step. Cure: a smaller learning rate, clipping, or fewer
    fraction bits (each bit less doubles the range): `FixedPoint(fraction_bits={"velocity": 50})`.
    `index` is the position in the flat vector that was hit first.
    """

    target: str | None = None  # the variable, where a step of several statements knows it
    step: int | None = None  # where it is raised later than it came about

    def __init__(self, message, index=None):
        super().__init__(message)
        self.index = index


class NotFinite(RevgradError, FloatingPointError):
    """A loss, a gradient or a cotangent was NaN or infinite.

    The message names the step and the leaf; `step` is the step, if one is known. Cure: a smaller
    learning rate, clipping, fewer steps, or a function with a slope where training meets it.
    """

    def __init__(self, message, step=None):
        super().__init__(message)
        self.step = step


class NotConverged(RevgradError, ArithmeticError):
    """`Implicit` was asked for the derivative of an optimum that training did not reach.

    Or its solver did not converge. Cure: longer training, the loss that training minimises, more
    iterations or damping; or an adjoint that needs no optimum, such as `Reversible()`.
    """


class NotResumed(RevgradError, ValueError):
    """A save file is damaged, or belongs to another run than the one that was to go on.

    The message says what differs: a hyperparameter, the loss or data (found by the gradient of the
    saved step), the number of BLAS threads, the processor. Cure: call with what the run was begun
    with, or delete the file.
    """


class BufferEmpty(RevgradError):
    """More was asked of an information buffer than was ever put in.

    Undo was called more often than the operation itself, or with other ratios.
    """


class RatioRefused(RevgradError, ValueError):
    """A factor has no usable ratio n/d: zero, negative, NaN, above 1, or too fine to keep.

    Cure: keep momenta in (0, 1] under `Reversible()`, or use `Stored()` or `Unrolled()`, which
    take any real factor.
    """


class NotReversed(RevgradError):
    """Running backwards did not return to the integers that training passed through.

    The gradient was not the same twice. Look for randomness outside `batches`, a loss that keeps
    state, data changed in place, another number of BLAS threads, or scatter-add on a GPU.
    `first` and `last` bound the steps in which it happened.
    """

    def __init__(self, message, first=None, last=None):
        super().__init__(message)
        self.first, self.last = first, last


class ClosureError(RevgradError, TypeError):
    """A function given to revgrad uses a traced value that was not passed to it.

    Its derivative would be lost without a word. Cure: pass the value through `hyper`.
    """


class LeakedBox(RevgradError, RuntimeError):
    """A traced value was used after its trace had ended.

    It was stored somewhere (a global, an attribute, a list) by a function under `grad`, `vjp` or
    `jvp`. Cure: return it from the function, or store `stop_gradient(value)`.
    """


class MissingRule(RevgradError, NotImplementedError):
    """A function has no derivative rule (in this mode, or for this argument).

    Cure: write one, see `revgrad.extend`, or use functions listed in the documentation.
    """


class LeftDomain(RevgradError, ValueError):
    """A hyperparameter that learns left its domain: a negative rate, a momentum of 1 or more.

    `name` is the hyperparameter, `step` the step. Cure: a smaller step for what tunes it, or a
    transform that keeps it inside, `transforms={"b1": "sigmoid"}`.
    """

    def __init__(self, message, name=None, step=None):
        super().__init__(message)
        self.name, self.step = name, step


class PrecisionWarning(UserWarning):
    """Some weights take steps, and have hypergradients, that are in good part rounding noise.

    Their gradients are far smaller than the largest. Cure: in the message; see `Report.drowned`.
    """


class StopRun(RevgradError):
    """Raised *by the user* in a callback: training ends after the step just taken."""
