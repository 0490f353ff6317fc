"""What an adjoint remembers of a run, and how it gets back to the earlier states from that.

A memory is told of every state (`before`), says how many bytes it holds (`nbytes`), and goes
through the steps last first (`back`), pulling cotangents, as often as it is asked to.
"""

from collections import deque
from math import ceil

import numpy as np

from revgrad.errors import BufferEmpty, FixedOverflow, NotReversed
from revgrad.snapshots import stride

DIGESTS = 32  # about how often a run notes where it is, to say later where it was lost


def every_so_often(steps, looks=DIGESTS):
    """How many steps lie between two looks at a run."""
    return max(1, ceil(steps / looks))


def state_bytes(state):
    return sum(x.values.nbytes for x in state.variables.values()) + sum(
        b.nbytes for b in state.buffers.values()
    )


class Nothing:
    """The memory of a run that nobody will differentiate through its steps."""

    nbytes, digests = 0, {}

    def before(self, t, state):
        pass

    def take_up(self, facts):
        pass


class Digests:
    """A digest of the start, a checksum now and then; the state itself holds the rest."""

    nbytes = 0

    def __init__(self, program):
        self.program, self.every = program, every_so_often(program.run.steps)
        self.digests = {}

    def before(self, t, state):
        if t % self.every == 0:
            self.digests[t] = self._look(t, state)

    def take_up(self, facts):
        """Go on from what a save file says."""
        self.digests = {int(t): bytes.fromhex(x) for t, x in facts["digests"].items()}

    def back(self, state, steps, cts):
        """Pull cts through steps - 1, ..., 0, undoing each; checks the way at every digest."""
        good = steps
        for t in reversed(range(steps)):
            try:
                leaves = self.program.retreat_and_pull(state, t, cts)
            except (BufferEmpty, FixedOverflow):
                raise self._lost(t, good) from None
            if t in self.digests:
                if self._look(t, state) != self.digests[t]:
                    raise self._lost(t, good, state)
                good = t
            yield t, leaves
        self.program.run.report.returned_exactly = True

    @staticmethod
    def _look(t, state):
        return state.checksum() if t else state.digest()

    def _lost(self, first, last, state=None):
        run, report = self.program.run, self.program.run.report
        report.returned_exactly = False
        found = "the integers differ"
        if state is not None and first == 0:
            start = self.program.variables({k: x.fraction_bits for k, x in state.variables.items()})
            wrong = {
                k: np.count_nonzero(x.values != start[k].values) for k, x in state.variables.items()
            }
            found = ", ".join(
                f"{n} of {run.layout_of(k).size} {k} differ" for k, n in wrong.items()
            )
        return NotReversed(
            f"steps {first} to {last} did not reverse: {found}, so the gradient was not the same "
            "twice. Look for randomness outside batches, a loss that keeps state, data changed in "
            "place, or indexing on the GPU.",
            first,
            last,
        )


class Copies:
    """A copy of every state, without the words that undoing would need."""

    def __init__(self, program):
        self.program, self.copies = program, []

    @property
    def nbytes(self):
        return sum(map(state_bytes, self.copies))

    def before(self, t, state):
        self.copies.append(state.copy())

    def back(self, _state, steps, cts):
        for t in reversed(range(steps)):
            yield t, self.program.visit_and_pull(self.copies[t], t, cts)


class Last:
    """Copies of the last k states alone."""

    def __init__(self, program, k):
        self.program, self.copies = program, deque(maxlen=k)
        # a run that a callback may end does not know beforehand which states will be the last
        self.first = 0 if program.run.callback else program.run.steps - k

    @property
    def nbytes(self):
        return sum(state_bytes(copy) for _, copy in self.copies)

    def before(self, t, state):
        if t >= self.first:
            self.copies.append((t, state.copy()))

    def back(self, _state, steps, cts):
        for t, copy in reversed(self.copies):
            yield t, self.program.visit_and_pull(copy, t, cts)


class Snapshots:
    """Copies of at most k states, at the steps from which the fewest are replayed.

    The way back moves them about; after it that of the start is left, and a second way back replays
    the run from there. So k states and the one at work are held at any time.
    """

    digests = {}  # noqa: RUF012 there are none

    def __init__(self, program, count):
        self.program, self.count = program, count
        self.kept, self.next = [], 0  # (step, state), earliest first; where the next one is due

    @property
    def nbytes(self):
        return sum(state_bytes(copy) for _, copy in self.kept)

    def before(self, t, state):
        if t == self.next:
            self.kept.append((t, state.copy()))
            # the way back begins at the end, whose use counts as a step
            self.next = t + self._stride(self.program.run.steps + 1 - t)

    def take_up(self, facts):
        """Go on from step t with the snapshot of the start: those between are made if needed."""
        self.next = facts["t"] if len(self.kept) < self.count else self.program.run.steps

    def _stride(self, steps):
        return stride(steps, self.count - len(self.kept) + 1)

    def back(self, _state, steps, cts):
        for t in reversed(range(steps)):
            while self.kept[-1][0] > t:
                self.kept.pop()
            yield t, self.program.visit_and_pull(self._state_at(t), t, cts)

    def _state_at(self, t):
        """A copy of the state at step t, replayed from the snapshot before; keeps new ones."""
        at, state = self.kept[-1]
        state = state.copy()
        while at < t:
            far = t + 1 - at
            end = at + self._stride(far)
            for step in range(at, end):
                self.program.advance(state, step)
            self.program.run.report.replays += end - at
            at = end
            if at < t and len(self.kept) < self.count:
                self.kept.append((at, state.copy()))
        return state
