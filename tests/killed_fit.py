"""A run of `fit` in a process that tests kill: `python killed_fit.py FILE TUNED KIND [KILL]`.

KILL: at which gradient, counted from 0 and validation gradients too, the process ends itself by
SIGKILL. Prints the digest of
the answer, and how many gradients were taken.
"""

import os
import signal
import sys

import numpy as np
import optree
from killed import tick_until
from training import batches_of, hyper_of, loss, params_of

import revgrad as rg
from revgrad.resume import digest

RAW = {"transforms": {"b1": "sigmoid", "b2": "half_tanh"}}
VALID = lambda p, batch: loss(p, optree.tree_map(np.zeros_like, hyper_of()), batch), batches_of(7)
OPTIMIZERS = {
    "tower": rg.Adam(0.02, **RAW, tuned_by=rg.Adam(1e-3, tuned_by=rg.SGD(1e-6))),
    "rtrl": rg.Adam(
        0.02, **RAW,
        tuned_by=rg.RTRL(*VALID, 1e-3, hyper=True, every=2, reset=8, diagnose=3),
    ),
    "rank": rg.SGD(0.02, tuned_by=rg.RTRL(*VALID, optimizer=rg.Adam(1e-4), rank=2)),
    "shared": rg.SGD({"hidden": 0.02, "out": 0.03}, tuned_by=rg.RTRL(*VALID, 1e-3, shared=True)),
}  # fmt: skip


def answer(path, tuned, kind):
    report = rg.Report()
    trained, paths, state = rg.fit(
        loss, params_of(kind), OPTIMIZERS[tuned], batches_of(10, kind), steps=30,
        hyper=hyper_of(kind), watch=lambda t, p: np.sum(p["out"]), report=report,
        return_state=True, save=path, save_every=3 if path else None,
    )  # fmt: skip
    return trained, state, dict(paths), paths.loss, report.watched


if __name__ == "__main__":
    path, tuned, kind, *kill = sys.argv[1:]
    taken = tick_until(int(kill[0]) if kill else -1, lambda: os.kill(os.getpid(), signal.SIGKILL))
    found = digest(*optree.tree_leaves(answer(None if path == "none" else path, tuned, kind)))
    print(found, taken())
