"""Functions of lists of values, replayed, whose answers may be what they are asked next."""

from revgrad.compiled import Entry, TwoPhase
from revgrad.replay import Replay


class Recorded:
    """f(*first) -> outputs, a list; recorded once, for values like these.

    The first `turns` outputs lie in buffers that the call after next overwrites: two sets take
    turns, so they may be inputs of the next call. The others are overwritten by that one already.
    A function that cannot be recorded runs as it is.
    """

    def __init__(self, f, first, turns=None):
        self.f, self.turn, self.replays = f, 0, None
        try:
            entry = Entry(lambda *boxes: (f(*boxes), None), first, borrow=True)
            program = entry.program
            parts = [program.inputs], [entry.fused], [program.outputs]
            one, two = (Replay(*parts, borrow=True) for _ in range(2))
        except Exception:  # whatever a statement may do that cannot be recorded
            return
        for x in program.outputs[turns:] if turns is not None else ():
            if x in one.owned:  # one buffer less to keep in cache
                two.space[two.names[x]] = one.space[one.names[x]]
        self.replays = one.run[0], two.run[0]

    def __call__(self, *first):
        if self.replays is None:
            return self.f(*first)
        self.turn = 1 - self.turn
        return self.replays[self.turn](*first)


class RecordedPair:
    """f(*first) -> (outputs, then) and then(*second) -> results, lists all; else as Recorded.

    `then` belongs to the latest call, and its results are overwritten by the next one.
    """

    def __init__(self, f, first, make_second):
        self.f, self.turn, self.replays = f, 0, None
        try:
            parts = TwoPhase(f, first, make_second, borrow=True).parts
            one, two = (Replay(*parts, borrow=True) for _ in range(2))
        except Exception:  # as above
            return
        taken = {id(_memory(one.space[one.names[x]])) for x in parts[2][0] if x in one.fixed}
        for x in one.fixed:
            mine = one.space[one.names[x]]
            if id(_memory(mine)) not in taken:  # one buffer less
                two.space[two.names[x]] = mine
        self.replays = one.run, two.run

    def __call__(self, *first):
        if self.replays is None:
            return self.f(*first)
        self.turn = 1 - self.turn
        now, then = self.replays[self.turn]
        return now(*first), then


def _memory(x):
    """What an array is a view of, at the bottom."""
    while getattr(x, "base", None) is not None:
        x = x.base
    return x
