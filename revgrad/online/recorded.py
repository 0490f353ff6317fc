"""Functions of lists of values, replayed, whose answers may be what they are asked next."""

from revgrad.compiled import Entry, TwoPhase
from revgrad.replay import put


class Recorded:
    """f(*first) -> outputs, a list; recorded once, for values like these.

    With `turns` outputs lie in buffers that the call after next overwrites: two sets take turns, so
    they may be inputs of the next call. Else they are overwritten by that one already.
    A function that cannot be recorded runs as it is.
    """

    def __init__(self, f, first, turns=False):
        self.f, self.turn, self.replays = f, 0, None
        try:
            entry = Entry(lambda *boxes: (f(*boxes), None), first, borrow=True)
            one = entry.replay()
        except Exception:  # whatever a statement may do that cannot be recorded
            return
        two = one.twin(_outputs(one, entry.program.outputs)) if turns else one
        self.replays = one.run[0], two.run[0]

    def __call__(self, *first):
        if self.replays is None:
            return self.f(*first)
        self.turn = 1 - self.turn
        return self.replays[self.turn](*first)


class RecordedPair:
    """f(*first) -> (outputs, then) and then(*second) -> results, lists all; else as Recorded.

    Outputs take turns. `then` belongs to the latest call, and leaves its results in the first of
    its arguments.
    """

    def __init__(self, f, first, make_second):
        self.f, self.turn, self.replays = f, 0, None
        try:
            phases = TwoPhase(f, first, make_second, borrow=True)
            places = [(k, k) for k in range(len(phases.parts[2][1]))]
            phases.options["replaces"] = (), places
            one = phases.replay()
        except Exception:  # as above
            return
        self.replays = one.run, one.twin(_outputs(one, phases.parts[2][0])).run

    def __call__(self, *first):
        if self.replays is None:
            outputs, then = self.f(*first)
        else:
            self.turn = 1 - self.turn
            now, then = self.replays[self.turn]
            outputs = now(*first)
        return outputs, lambda *second: put(then(*second), second)


def _outputs(replay, outputs):
    """The buffers that a replay's outputs lie in."""
    return [replay.space[replay.names[x]] for x in outputs if x in replay.fixed]
