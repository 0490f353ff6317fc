"""Which adjoint adjoint="auto" takes, and why."""

from revgrad.adjoints import Checkpointed, Forward, Reversible, Stored, Unrolled
from revgrad.arrays import plain
from revgrad.errors import RatioRefused
from revgrad.record import Record
from revgrad.schedule import ratio_of
from revgrad.statements import Scale
from revgrad.tape import Box, Push

ROOM = 10**9  # bytes of states up to which storing them all is taken to be no burden


def choose(run, values, saved=False):
    """(adjoint, why). saved: only those that can be resumed from a file."""
    boxes = [x for x in _leaves(values) if isinstance(x, Box)]
    below = [x.value for x in boxes if isinstance(x.value, Box)]
    if not all(isinstance(x.owner, Record) for x in below):  # which only watches
        return Unrolled(), "it is differentiated more than once"
    if any(isinstance(x.owner, Push) for x in boxes):
        return Forward(), "it is differentiated in forward mode"
    why = _why_not_reversible(run, values)
    if not why:
        return Reversible(), f"{run.optimizer.name} is reversible"
    stored = run.steps * _state_bytes(run)
    if stored <= ROOM and not saved:
        return Stored(), f"{why}, and its {run.steps} states take {stored / 1e6:.3g} MB"
    taken = f"{why}, and its {run.steps} states would take {stored / 1e9:.3g} GB"
    numbers = sum(_size(x) for x in boxes)
    if numbers == 1 and not saved:
        return Forward(), f"{taken}, while one number alone is traced"
    if saved:
        taken = f"{why}, and it is saved"
    return Checkpointed(memory=_room(run)), taken


def _why_not_reversible(run, values):
    """Why `Reversible` cannot be had, as far as that is known beforehand; "" if it can."""
    if not run.optimizer.reversible:
        return f"{run.optimizer.name} is not reversible"
    for s in run.optimizer.statements:
        if isinstance(s, Scale) and isinstance(s.by, str):
            try:
                for value in values.optimizer[s.by]:
                    ratio_of(plain(value), run.arithmetic.rounding, s.above_one)
            except RatioRefused:
                return f"{run.optimizer.name}({s.by}=...) has a factor that cannot be undone"
    return ""


def _room(run):
    """ROOM, or what a few states take if that is more."""
    return max(ROOM, 10 * _state_bytes(run))


def _state_bytes(run):
    scaled = {s.target for s in run.optimizer.statements if isinstance(s, Scale)}
    return run.layout.size * (8 * (1 + len(run.optimizer.variables)) + 4 * len(scaled))


def _leaves(values):
    for leaves in (values.params, *values.warm.values(), *values.optimizer.values(), values.hyper):
        yield from leaves


def _size(box):
    return getattr(plain(box), "size", 1)
