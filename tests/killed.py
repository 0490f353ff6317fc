"""A hypergradient in a process that tests kill: `python killed.py FILE ADJOINT [KILL]`.

KILL: at which gradient, counted from 0, the process ends itself by SIGKILL. Prints the digest of
the answer, and how many gradients were taken.
"""

import os
import signal
import sys
from itertools import count

import optree
from training import batches_of, hyper_of, loss, params_of, validation_loss

import revgrad as rg
from revgrad.gradient import Gradient
from revgrad.resume import digest

STEPS = 40
ADJOINTS = {"reversible": rg.Reversible(), "checkpointed": rg.Checkpointed(4)}
ADJOINTS["forward"] = rg.Forward()
OPTIMIZERS = {"reversible": rg.Momentum, "checkpointed": rg.SGD, "forward": rg.SGD}


def answer(path, name, kind="float32", every=3, **changes):
    start = {"params": params_of(kind), "rate": 0.05, "hyper": hyper_of(kind)}

    def hyperloss(now):
        what = {"batches": batches_of(STEPS, kind), "loss": loss} | changes
        trained, watched = rg.train(
            what.pop("loss"), now["params"], OPTIMIZERS[name](now["rate"]), what.pop("batches"),
            hyper=now["hyper"], adjoint=ADJOINTS[name], return_watched=True, save=path,
            save_every=every if path else None, watch=lambda t, p: validation_loss(p), **what,
        )  # fmt: skip
        return validation_loss(trained) + sum(watched[k] for k in range(0, STEPS, 7))

    return rg.value_and_grad(hyperloss)(start)


def tick_until(kill, act):
    """Count gradients; act at number `kill`. Returns the count so far, as a function."""
    ticks, seen = count(), [0]

    def watched(method):
        def counted(self, *args):
            seen[0] += 1
            if next(ticks) == kill:
                act()
            return method(self, *args)

        return counted

    Gradient.value = watched(Gradient.value)
    Gradient.with_pullback = watched(Gradient.with_pullback)
    Gradient.with_push = watched(Gradient.with_push)
    Gradient.with_column = watched(Gradient.with_column)
    return lambda: seen[0]


if __name__ == "__main__":
    path, name, *kill = sys.argv[1:]
    taken = tick_until(int(kill[0]) if kill else -1, lambda: os.kill(os.getpid(), signal.SIGKILL))
    found = digest(*optree.tree_leaves(answer(None if path == "none" else path, name)))
    print(found, taken())
