"""Functions of lists of values, replayed, whose answers may be what they are asked next."""

from revgrad.compiled import Entry, TwoPhase
from revgrad.replay import Replay


class Recorded:
    """f(*first) -> outputs, a list; recorded once, for values like these.

    Outputs lie in buffers that the call after next overwrites: two sets take turns, so they may be
    inputs of the next call. A function that cannot be recorded runs as it is.
    """

    def __init__(self, f, first):
        self.f, self.turn, self.replays = f, 0, None
        try:
            entry = Entry(lambda *boxes: (f(*boxes), None), first, borrow=True)
            program = entry.program
            parts = [program.inputs], [entry.fused], [program.outputs]
            self.replays = [Replay(*parts, borrow=True).run[0] for _ in range(2)]
        except Exception:  # whatever a statement may do that cannot be recorded
            return

    def __call__(self, *first):
        if self.replays is None:
            return self.f(*first)
        self.turn = 1 - self.turn
        return self.replays[self.turn](*first)


class RecordedPair:
    """f(*first) -> (outputs, then) and then(*second) -> results, lists all; else as Recorded.

    `then` belongs to the latest call.
    """

    def __init__(self, f, first, make_second):
        self.f, self.turn, self.replays = f, 0, None
        try:
            parts = TwoPhase(f, first, make_second, borrow=True).parts
            self.replays = [Replay(*parts, borrow=True).run for _ in range(2)]
        except Exception:  # as above
            return

    def __call__(self, *first):
        if self.replays is None:
            return self.f(*first)
        self.turn = 1 - self.turn
        now, then = self.replays[self.turn]
        return now(*first), then
