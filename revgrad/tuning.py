"""Hyperparameters that learn while training goes on: which ones, as what, within which bounds.

    Adam(1e-3, tuned_by=SGD(1e-5), tuned=("learning_rate", "b1"), transforms={"b1": "sigmoid"})

What learns is a raw number; a transform makes the hyperparameter of it. Here is what an optimizer's
`tuned_by`, `tuned` and `transforms` may say; `revgrad.online` does it.
"""

from math import inf, nextafter

from revgrad.constraints import Constraint, half_tanh, positive, squared, unit_interval

FIELDS = ("tuned_by", "tuned", "transforms")  # of every optimizer, beside its hyperparameters

# What a hyperparameter is made of, by name; a Constraint of one's own does as well. "identity": it
# learns as it is, and leaving its domain raises. "free": it learns as it is, wherever that leads.
# "square" and "half_tanh" are those of the paper's RMSProp and Adam.
TRANSFORMS = {
    "identity": None,
    "free": None,
    "exp": positive,
    "square": squared,
    "sigmoid": unit_interval,
    "half_tanh": half_tanh,
}

# Lowest and highest value by conventional name, both included.
_BELOW_ONE = 0.0, nextafter(1.0, 0.0)
_ABOVE_ZERO = nextafter(0.0, 1.0), inf
DOMAINS = {
    **dict.fromkeys(("learning_rate", "step_size", "weight_decay", "eps", "eps_root"), (0.0, inf)),
    **dict.fromkeys(("momentum", "b1", "b2", "decay", "rho"), _BELOW_ONE),
    **dict.fromkeys(("max_delta", "max_norm", "mass", "tempering"), _ABOVE_ZERO),
}
UNTUNED = ("eps", "eps_root")  # unless they are asked for


class Tuner:
    """Base of what `tuned_by` may be besides an optimizer.

    bind(fitting) -> an object that `revgrad.fit` runs: see `revgrad.online.tower.Tower`.
    learns_hyper: whether more learns than what the optimizer has.
    """

    learns_hyper = False

    def bind(self, fitting):
        raise NotImplementedError(
            f"{type(self).__name__} has no bind(fitting), which gives what `revgrad.fit` runs; "
            "define it as revgrad.online.rtrl.RTRL does."
        )


def tuned_names(optimizer):
    """The hyperparameters that learn, in alphabetical order."""
    if optimizer.tuned_by is None:
        return ()
    if optimizer.tuned is not None:
        return tuple(sorted(optimizer.tuned))
    left_out = {*UNTUNED, *optimizer.initial.values()}
    return tuple(sorted(name for name in optimizer.hyper if name not in left_out))


def transform_of(optimizer, name):
    """The Constraint that makes a hyperparameter of what learns, or None."""
    given = (optimizer.transforms or {}).get(name, "identity")
    return TRANSFORMS[given] if isinstance(given, str) else given


def domain_of(optimizer, name):
    """(lowest, highest) value that a hyperparameter may learn."""
    given = (optimizer.transforms or {}).get(name, "identity")
    if given != "identity":
        return -inf, inf
    known = DOMAINS.get(name.rstrip("_"), (-inf, inf))
    return optimizer.domains.get(name, known)


def check_tuning(optimizer):
    """Raises: TypeError, ValueError for what cannot be tuned so."""
    name, tuned, transforms = optimizer.name, optimizer.tuned, optimizer.transforms
    if optimizer.tuned_by is None:
        for option, given in (("tuned", tuned), ("transforms", transforms)):
            if given is not None:
                raise TypeError(f"{name}({option}={given!r}) without tuned_by=; nothing learns.")
        return
    if isinstance(tuned, str):
        raise TypeError(f"{name}(tuned={tuned!r}); pass a tuple of names: ({tuned!r},).")
    learns = tuned_names(optimizer)
    if not learns and not getattr(optimizer.tuned_by, "learns_hyper", False):
        raise ValueError(f"{name}: nothing is tuned; name some of {sorted(optimizer.hyper)}.")
    if unknown := {*learns} - {*optimizer.hyper}:
        raise ValueError(
            f"{name}(tuned=...) has {sorted(unknown)}; it has {sorted(optimizer.hyper)} to tune "
            "(those that are None take no part)."
        )
    if unknown := {*(transforms or {})} - {*learns}:
        raise ValueError(f"{name}(transforms=...) has {sorted(unknown)}; tuned are {learns}.")
    for key, given in (transforms or {}).items():
        if given not in TRANSFORMS if isinstance(given, str) else not isinstance(given, Constraint):
            raise ValueError(
                f"{name}(transforms={{{key!r}: {given!r}}}); choose one of {sorted(TRANSFORMS)}, "
                "or a revgrad.constraints.Constraint."
            )
