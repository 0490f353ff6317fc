"""A run's save file: where the run is, forwards or on the way back, so that a killed one goes on.

The file says which run it belongs to (digests of everything `train` was given but the loss and the
batches), and keeps the digest of the gradient at the state it holds, which is computed again when
the run is taken up: that is what shows another loss, other data or another processor.
"""

import os
import platform
from dataclasses import dataclass
from hashlib import blake2b
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
from threadpoolctl import threadpool_info

from revgrad import files
from revgrad._ext import homes
from revgrad.errors import NotResumed
from revgrad.fixed import FixedArray
from revgrad.state import BUFFERS, Cotangents, State

FORM = "revgrad run 1"
SECONDS = 30.0  # between two savings, where no number of steps is given


@dataclass(frozen=True)
class Saving:
    """What a user asked for: a path, and steps between two savings (None: every 30 seconds)."""

    path: Any
    every: int | None = None


@dataclass
class Pending:
    """A way back that was interrupted after it had undone step t."""

    t: int
    state: Any  # at step t, where the adjoint keeps it
    cotangents: Any
    origin: str  # digest of the cotangents it began with
    growth: list
    replays: int


def digest(*arrays):
    """Text that differs where dtypes, shapes or bytes do."""
    found = blake2b(digest_size=16)
    for x in arrays:
        x = homes.to_host(x)
        found.update(f"{x.dtype.str}{x.shape}".encode())
        found.update(np.ascontiguousarray(x).tobytes())
    return found.hexdigest()


def environment(threads):
    """What else a gradient's bits depend on."""
    libraries = [i for i in threadpool_info() if i["user_api"] == "blas"]
    blas = sorted({f"{i['internal_api']} {i.get('architecture')}" for i in libraries})
    return {
        "revgrad": version("revgrad"),
        "NumPy": np.__version__,
        "processor": f"{platform.machine()} {_processor()}, {', '.join(blas)}",
        "number of BLAS threads": threads,
    }


def _processor():
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), "")


def belongings(run, values):
    """What any run is made of, by the name of what a user would look at."""
    layout = run.layout
    found = {
        "number of steps": run.steps,
        "state['t']": run.first_t,
        "tree, shapes or dtypes of the params": digest(
            *layout.paths, *map(str, layout.shapes), *map(str, layout.dtypes)
        ),
        "params": digest(*values.params),
        "hyper": digest(*values.hyper, *map(str, run.hyper_every)),
    }
    return found | {f"state[{name!r}]": digest(*leaves) for name, leaves in values.warm.items()}


def statements_of(optimizer):
    """An optimizer's list, as far as text tells."""
    return [(type(s).__name__, s.target, *s.reads) for s in optimizer.statements]


def _belongings(program, adjoint, remember):
    """What a run of `train` is made of."""
    run, values = program.run, program.values
    optimizer = run.optimizer.name
    found = {
        "adjoint": repr(adjoint),
        "optimizer": f"{optimizer} {statements_of(run.optimizer)}",
        "arithmetic": repr(run.arithmetic),
        **belongings(run, values),
        "derivative asked for (the run was traced or not)": remember,
    }
    for name, leaves in values.optimizer.items():
        spread = run.spreads[name]
        found[f"{optimizer}({name}=...)"] = digest(*leaves, str(spread.every), str(spread.owner))
    return found


class SaveFile:
    """What save files of runs have in common: when one is due, and whose it is.

    belongs: what the run is made of, by name. door: the function that a user called.
    """

    door = "train"

    def __init__(self, run, belongs):
        self.saving, self.belongs = run.saving, belongs
        self.around = environment(run.report.blas_threads)
        self.last, self.clock = None, monotonic()

    def due(self, t):
        """Whether to save at step t."""
        if self.last is None:  # not at the very place where this process began
            self.last = t
        if self.saving.every is not None:
            return t != self.last and t % self.saving.every == 0
        return monotonic() - self.clock >= SECONDS

    def was_written(self, t):
        self.last, self.clock = t, monotonic()

    def remove(self):
        """The run is over: nothing is left to be taken up."""
        Path(self.saving.path).unlink(missing_ok=True)

    def check_belongs(self, facts):
        """Raises: NotResumed unless the file is of this run."""
        for name, now in (self.belongs | self.around).items():
            was = (facts["belongs"] | facts["around"]).get(name)
            if was != now:
                said = name in self.around or name in ("adjoint", "number of steps")
                known = f" ({was}, now {now})" if said else ""
                raise self.refusal(f"another {name}{known}")
        if len(facts["belongs"]) != len(self.belongs):
            raise self.refusal("another optimizer or state")

    def check_gradient(self, t, g, expected):
        """Raises: NotResumed unless g has the digest that the file has."""
        if digest(g) != expected:
            raise NotResumed(
                f"the gradient of step {t} is not the one that {self.saving.path} was saved with: "
                "another loss, or other data (batches, or what is no float in hyper); or the "
                "gradient differs between runs, as with a random loss. Put back what the run was "
                "begun with, or delete the file to begin anew."
            )

    def refusal(self, what):
        return NotResumed(
            f"{self.saving.path} was saved by a run with {what}. Call {self.door} with what it was "
            "begun with, or delete the file to begin anew."
        )


class Log(SaveFile):
    """The save file of one run; see the module docstring.

    columns: of tangents that ride along, where they do; what they are is saved as `extra`, arrays
    of float64 by name, and found in `extra`, flat, when it was read.
    """

    def __init__(self, program, adjoint, remember, columns=None):
        super().__init__(program.run, _belongings(program, adjoint, remember))
        self.program, self.keeps_words, self.extra = program, adjoint.keep and remember, {}
        if columns is not None:
            self.belongs["choice of what is differentiated"] = digest(*columns.arrays())
        self.pending, self.origin = None, None

    def begin_back(self, ct_variables, ct_watched):
        """Note with what the way back begins; what is pending if it began with the same."""
        watched = [] if ct_watched is None else [ct_watched]
        self.origin = digest(*ct_variables.values(), *watched, len(watched))
        return self.pending if self.pending and self.pending.origin == self.origin else None

    # Writing.

    def forwards(self, t, steps, state, memory, watched, largest, g=None, extra=()):
        """Save the state before step t of a run of `steps` steps; returns its (value, gradient)."""
        leaves = self.program.layout.leaves(state.variables["params"])
        first = g
        if first is None:
            value, flat = self.program.gradient.value(leaves, min(t, steps - 1))
            first = value, flat.copy()
        facts = {"phase": "forwards", "largest": largest, "ended": t == steps}
        parts = [*self._state(state), ("watched", "F64", np.array(watched, np.float64))]
        parts += [(f"extra {name}", "F64", x) for name, x in dict(extra).items()]
        self._write(facts, t, steps, memory, first[1], parts)
        return first

    def backwards(self, t, steps, final, state, leaves, memory, cts, watched):
        """Save the cotangents of the state before step t, and that state if words are kept."""
        g = self.program.gradient.value(leaves, t)[1]
        report = self.program.run.report
        facts = {"phase": "backwards", "origin": self.origin, "growth": report.growth}
        facts |= {"replays": report.replays, "largest": {}, "ended": True}
        parts = [(f"final {name}", "I64", x.values) for name, x in final.variables.items()]
        if self.keeps_words:
            parts += self._state(state)
        parts.append(("leaves", "F64", self.program.layout.join(leaves)))
        parts += [(f"cotangent {name}", "F64", ct) for name, ct in cts.variables.items()]
        hyper = [*chain.from_iterable(cts.optimizer.values()), *cts.hyper]
        flat = [np.ravel(homes.to_host(x)) for x in hyper]
        parts.append(("hyper", "F64", np.concatenate([*flat, [0.0]])))
        parts.append(("watched", "F64", np.array(watched, np.float64)))
        self._write(facts, t, steps, memory, g, parts)

    def _state(self, state):
        parts = [(f"state {name}", "I64", x.values) for name, x in state.variables.items()]
        return [*parts, *((f"buffer {name}", "", b) for name, b in state.buffers.items())]

    def _write(self, facts, t, steps, memory, g, parts):
        facts |= {"t": t, "steps": steps, "gradient": digest(g), "belongs": self.belongs}
        facts |= {"around": self.around, "buffers": {}}
        facts["fraction bits"] = self.fraction_bits
        facts["digests"] = {str(k): x.hex() for k, x in memory.digests.items()}
        tensors, content = [], []
        for name, kind, x in parts:
            if kind:
                x = homes.to_host(x)
                little = x.astype(x.dtype.newbyteorder("<"), copy=False)
                tensors.append((name, kind, little.nbytes))
                content.append([np.ascontiguousarray(little).tobytes()])
            else:
                facts["buffers"][name.split(" ")[1]], more, pieces = x.parts()
                tensors += [(f"{name} {part}", k, length) for part, k, length in more]
                content.append(pieces)
        files.write(
            self.saving.path, FORM, facts, tensors, (piece for some in content for piece in some)
        )
        self.was_written(t)

    # Reading.

    def load(self, start):
        """(facts, state to go on from, watched) of the file, or None if there is none.

        start: the state the run begins with, for its form. Raises: NotResumed.
        """
        self.fraction_bits = {k: x.fraction_bits for k, x in start.variables.items()}
        self.scaled = [*start.buffers]
        if not os.path.exists(self.saving.path):
            return None
        try:
            with files.Reader(self.saving.path, FORM) as file:
                self.check_belongs(file.facts)
                if file.facts["fraction bits"] != self.fraction_bits:
                    raise self.refusal("another first gradient: another loss, or other data")
                return self._read(file)
        except NotResumed:
            raise
        except ValueError as error:
            raise NotResumed(f"{error} Delete it to begin anew.") from None

    def _read(self, file):
        facts, read, buffers = file.facts, {}, {}
        for name in file.lengths:
            group, _, rest = name.partition(" ")
            owner = rest.split(" ")[0]
            if group != "buffer":
                kind = "<i8" if group in ("state", "final") else "<f8"
                read[name] = np.frombuffer(file.read(name), kind).copy()
                if rest and group != "leaves":
                    like = self.program.run.layout_of(rest).like
                    read[name] = homes.beside(read[name], like)
            elif owner not in buffers:
                pieces = lambda part, most, n=f"buffer {owner}": file.pieces(f"{n} {part}", most)
                make = BUFFERS[self.program.run.arithmetic.buffer]
                like = self.program.run.layout_of(owner).like
                buffers[owner] = make.rebuilt(facts["buffers"][owner], pieces, like=like)
        self.extra = {k[6:]: x for k, x in read.items() if k.startswith("extra ")}
        if facts["phase"] == "forwards":
            state = self._rebuilt(read, "state", buffers)
            leaves = self.program.layout.leaves(state.variables["params"])
        else:
            state = self._rebuilt(read, "final", {})
            layout = self.program.layout
            leaves = layout.cast(homes.beside(read["leaves"], layout.like))
            here = self._rebuilt(read, "state", buffers) if self.keeps_words else None
            self._take_up(facts, read, here)
        self._check_gradient(facts, leaves)
        return facts, state, read["watched"].tolist()

    def _rebuilt(self, read, group, buffers):
        bits = self.fraction_bits
        variables = {name: FixedArray(read[f"{group} {name}"], bits[name]) for name in bits}
        return State(variables, {name: buffers[name] for name in self.scaled if name in buffers})

    def _take_up(self, facts, read, state):
        program, hyper, lo = self.program, [], 0
        optimizer = {k: [v.shape for v in vs] for k, vs in program.schedule.values.items()}
        shapes = [*chain.from_iterable(optimizer.values()), *map(np.shape, program.values.hyper)]
        for shape in shapes:
            size = int(np.prod(shape))
            hyper.append(read["hyper"][lo : lo + size].reshape(shape).copy())
            lo += size
        found = {}
        for name, several in optimizer.items():
            found[name], hyper = hyper[: len(several)], hyper[len(several) :]
        pairs = zip(hyper, program.values.hyper, strict=True)
        hyper = [homes.beside(x, like) for x, like in pairs]
        cts = Cotangents({k: read[f"cotangent {k}"] for k in self.fraction_bits}, found, hyper)
        growth = [tuple(x) for x in facts["growth"]]
        self.pending = Pending(facts["t"], state, cts, facts["origin"], growth, facts["replays"])

    def _check_gradient(self, facts, leaves):
        t = min(facts["t"], facts["steps"] - 1)
        self.check_gradient(t, self.program.gradient.value(leaves, t)[1], facts["gradient"])
