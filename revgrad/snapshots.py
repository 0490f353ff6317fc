"""Which steps k snapshots keep, so that the fewest steps are replayed: pure integers.

Going back over T steps from k snapshots, the first of them of the start, steps are taken several
times. With no step taken more than r times, C(k + r, r) steps can be gone back over; the plan
splits every stretch so that both parts stay within such bounds.
Source: Griewank and Walther 2000, algorithm 799 (revolve).
"""

from math import comb


def advances(steps, snapshots):
    """The fewest steps to take to go back over `steps`, the first sweep to the last step included.

    The step being pulled back through is not counted. Known formula: r T - C(k + r, r - 1), where
    r is the smallest with T <= C(k + r, k).
    """
    r = repeats(steps, snapshots)
    return r * steps - comb(snapshots + r, r - 1) if r else 0


def replays(steps, snapshots):
    """Steps taken again on the way back, after a run that took each once.

    What is done with the end of the run counts as one step more, from which the way back begins.
    """
    return advances(steps + 1, snapshots) - steps


def repeats(steps, snapshots):
    """The smallest r with steps <= C(snapshots + r, r)."""
    r = 0
    while comb(snapshots + r, r) < steps:
        r += 1
    return r


def stride(steps, snapshots):
    """How far beyond the snapshot at its start a stretch of `steps` keeps the next one.

    snapshots: at least 1, that at the start included; with one, none is kept: the last step.
    Needs steps >= 2.
    """
    if snapshots == 1:
        return steps - 1
    r = repeats(steps, snapshots)
    most = comb(snapshots + r - 1, snapshots)  # the first part with one repeat less
    rest = comb(snapshots + r - 2, snapshots - 1)  # the least that the second part should be
    return max(1, min(most, steps - rest, steps - 1))
