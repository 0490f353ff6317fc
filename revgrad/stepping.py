"""The statements of a step, taken exactly, and pushed forward through for columns of tangents.

What a statement reads is known by a key: ("before" or "after", a variable) of the whole step;
("between", which statement, what it reads); ("factor", which statement); ("of loss", name);
("hyper", name); ("step", "t").
"""

import numpy as np

from revgrad._ext import homes
from revgrad.lanes import Lanes
from revgrad.replay import put
from revgrad.rules.row import cast, dtype_of
from revgrad.statements import OF_LOSS, Scale, global_norm
from revgrad.transforms import jvp


class Statements:
    """The statements of a run's steps, and the recorded programs that push through them.

    Programs differ in which hyperparameters move: with values that many steps share, few columns
    move one at any step.
    """

    def __init__(self, adjoint, program, columns):
        self.program, self.run, self.columns = program, program.run, columns
        self.list, self.clip, self.dtype = program.statements, None, program.run.layout.dtype
        if adjoint.transposed_clip:
            self.list, self.clip = self.run.optimizer.optimizer.statements, "max_delta"
            if self.clip in columns.optimizer:
                raise TypeError(
                    "Forward(transposed_clip=True) has no derivative with respect to max_delta, "
                    "which is traced; leave it out, or pass stop_gradient of the bound."
                )
        self.sources = [self._sources(k, s) for k, s in enumerate(self.list)]
        self.recorded = {}

    def directions(self, rows, g, t):
        """Rows of tangents of the params; zero where g is clipped, if the clipping comes first."""
        if self.clip is None:
            return rows
        return rows * (np.abs(g) <= self._given(self.clip, t))

    def take(self, state, t, answer, now):
        """Take step t of a known ((loss, aux), g); returns what pushes columns through it.

        That is follow(tangents, of_loss, part): rows by variable, changed in place, and those of
        what is of the loss, of a slice of the first `now` columns.
        """
        groups = self.columns.groups(t, self.run.spreads, now)
        for *_, names in groups:
            if names not in self.recorded:
                self.recorded[names] = self._record(names, state, t, answer)
        pushes = [self.recorded[names] for *_, names in groups]
        if any(push is None for push in pushes):
            _, points, _ = self.program.advance_pointwise(state, t, answer)
            return lambda *rows: push_points(self.program, points, t, self.columns, *rows)
        values = self._take(state, t, answer, set().union(*(push.needed for push in pushes)))
        for push in set(pushes):
            push.start(values)

        def follow(tangents, of_loss, part):
            for (lo, hi, names), push in zip(groups, pushes, strict=True):
                lo, hi = max(lo, part.start), min(hi, part.stop)
                if lo < hi:
                    here = slice(lo - part.start, hi - part.start)
                    rows = {k: x[here] for k, x in (tangents | of_loss).items()}
                    rows |= {name: self._of_hyper(name, t, lo, hi) for name in names}
                    push.push(rows, hi - lo)

        return follow

    def _of_hyper(self, name, t, lo, hi):
        spread, layout = self.run.spreads[name], self.run.layout_of(name)
        rows = self.columns.optimizer_at(name, spread, t, layout, lo, hi)
        return rows.astype(self.dtype, copy=False)

    def _read(self, x):
        """A value as the programs take it: vectors like the tangents, numbers double throughout."""
        return x.astype(self.dtype, copy=False) if np.ndim(x) else float(homes.home(x))

    def _given(self, name, t):
        """A hyperparameter at step t: a number, or a vector where the weights are."""
        return self._beside(self.program.schedule.value(name, t), name)

    def _beside(self, x, name):
        return homes.beside(x, self.run.layout_of(name).like) if np.ndim(x) else x

    # Where values are found.

    def _sources(self, k, s):
        """What statement k reads -> its key; the target of a Scale too."""
        names = [*s.reads, s.target] if isinstance(s, Scale) else s.reads
        return {name: self._key(k, name) for name in names}

    def _key(self, k, name):
        if name == "t" or name in OF_LOSS:
            return ("step" if name == "t" else "of loss"), name
        writers = [j for j, s in enumerate(self.list) if s.target == name]
        if not writers and name != "params":
            return "hyper", name
        if all(j >= k for j in writers):
            return "before", name
        return ("after", name) if all(j < k for j in writers) else ("between", k, name)

    def _take(self, state, t, answer, needed):
        """Take step t; returns the values of the needed keys."""
        kinds = {key[0] for key in needed}
        values = {key: self._value(key, state, t, answer) for key in needed if key[0] != "after"}
        if "between" in kinds:
            _, points, _ = self.program.advance_pointwise(state, t, answer)
            found = {key: _of_point(points, *key[1:]) for key in needed if key[0] == "between"}
            values |= {key: self._read(x) for key, x in found.items()}
        else:
            self.program.advance(state, t, answer)
        return values | {
            key: state.variables[key[1]].decode(self.dtype) for key in needed if key[0] == "after"
        }

    def _value(self, key, state, t, answer):
        """A value before step t; of a variable that is read later, one like it."""
        kind, name = key[0], key[-1]
        if kind == "factor":
            s, schedule = self.list[name], self.program.schedule
            reads = schedule.factor_reads(s, t)  # on the host
            return self._read(self._beside(schedule.factor(s, reads, t)[1], s.target))
        if kind in ("before", "after", "between"):
            return state.variables[name].decode(self.dtype)
        if kind == "step":
            return float(self.run.first_t + t + 1)
        found = self._given(name, t) if kind == "hyper" else self._of_loss(name, t, answer)
        return self._read(found)

    def _of_loss(self, name, t, answer):
        (_, aux), g = answer
        if name == "aux":
            return self.run.flat_aux(aux)
        g = g.astype(np.float64)
        if name == "g_norm":
            return global_norm([g])
        if self.clip is None:
            return g
        most = self._given(self.clip, t)
        return np.clip(g, -most, most)

    # Recording.

    def _record(self, names, state, t, answer):
        """The StatementPush for these moving hyperparameters, or None where there is none."""
        keys = {key for found in self.sources for key in found.values()}
        keys |= {("factor", k) for k, s in enumerate(self.list) if isinstance(s, Scale)}
        values = {key: self._value(key, state, t, answer) for key in sorted(keys, key=repr)}
        read = {name for s in self.list for name in s.reads}
        likes = {k: x.values for k, x in state.variables.items()}
        likes |= {"g": answer[1]} if "g" in read else {}
        likes |= {"aux": self.run.flat_aux(answer[0][1])} if "aux" in read else {}
        tangents = {k: np.ones_like(x, self.dtype) for k, x in likes.items()}
        tangents |= {"g_norm": 1.0} if "g_norm" in read else {}
        tangents |= {k: _row(self._of_hyper(k, t, 0, 1), 0) for k in sorted(names)}
        count = len(self.columns.first)
        try:
            return StatementPush(self.list, self.sources, values, tangents, count)
        except Exception:  # whatever a statement may do that cannot be recorded: the tape takes it
            if self.clip is not None:
                raise
            return None


def _row(rows, k):
    """A row; of a vector a Python number, which leaves the dtype of what it meets alone."""
    return rows[k] if rows.ndim > 1 else float(homes.home(rows[k]))


def _of_point(points, k, name):
    point = points[k]
    return point.reads.get(name, point.before)


class StatementPush:
    """New tangents of the variables from old ones, through all statements of a step.

    values: {key: an example of the value}; tangents: {variable or what moves beside: an example of
    a tangent, of one column}. Keys: ("factor", k) and ("before", k) are those of statement k, a
    Scale. needed: the keys whose values matter.
    """

    def __init__(self, statements, sources, values, tangents, count):
        self.keys, self.moving = list(values), list(tangents)
        self.targets = list(dict.fromkeys(s.target for s in statements))

        def both(*boxes):
            at = dict(zip(self.keys, boxes, strict=True))

            def then(*ts):
                now = dict(zip(self.moving, ts, strict=True))
                for k, s in enumerate(statements):
                    reads = {name: at[key] for name, key in sources[k].items()}
                    now[s.target] = _pushed(s, at.get(("factor", k)), reads, now)
                return [now[name] for name in self.targets]

            return [], then

        replaces = [(j, self.moving.index(k)) for j, k in enumerate(self.targets)]
        examples = list(tangents.values())
        self.lanes = Lanes(both, list(values.values()), examples, count, replaces=replaces)
        self.needed = {k for k, used in zip(self.keys, self.lanes.needed, strict=True) if used}

    def start(self, values):
        """Make ready for a step whose values, by key, are these."""
        self.lanes.start([values.get(key) for key in self.keys])

    def push(self, tangents, count):
        """Push `count` rows of tangents, {name: rows}; those of the variables change in place."""
        for part in self.lanes.chunks(0, count):
            width = part.stop - part.start
            if width > 1:
                rows = {k: tangents[k][part] for k in self.moving}
            else:
                rows = {k: _row(tangents[k], part.start) for k in self.moving}
            put(self.lanes.push(width, [*rows.values()]), [rows[k] for k in self.targets])


def _pushed(s, factor, reads, now):
    """The tangent of a statement's target after it."""
    moving = {name: now[name] for name in s.reads if name in now}
    own = {name: reads[name] for name in s.reads}
    t, function = now[s.target], s.by if isinstance(s, Scale) else s.delta
    if isinstance(s, Scale):
        t = t * factor
        if not moving:
            return t
        t_factor = moving[s.by] if isinstance(s.by, str) else _through(function, own, moving)
        return t + t_factor * reads[s.target]
    return t + _through(function, own, moving) if moving else t


def _through(function, reads, moving):
    """The tangent of function(**reads), where those named in `moving` have these tangents."""
    at_rest = {name: x for name, x in reads.items() if name not in moving}
    here = {name: reads[name] for name in moving}
    moving = {name: cast(x, dtype_of(here[name])) for name, x in moving.items()}
    return jvp(lambda xs: function(**xs, **at_rest), (here,), (moving,))[1]


# Without a recording.


def push_points(program, points, t, columns, tangents, of_loss, part):
    """Push a slice of the columns through the statements of a step, in place, on the tape."""
    run, known = program.run, dict(of_loss)
    if "g_norm" in known:
        known["g_norm"] = known["g_norm"][:, None]

    def tangent(name):
        if name in tangents:
            return tangents[name]
        if name not in known:
            known[name] = None
            if name in columns.optimizer:
                spread, layout = run.spreads[name], run.layout_of(name)
                found = columns.optimizer_at(name, spread, t, layout, part.start, part.stop)
                known[name] = found if found.ndim > 1 else found[:, None]
        return known[name]

    for point in points:
        s, target = point.statement, tangents[point.statement.target]
        if isinstance(s, Scale):
            t_factor = None
            if not s.literal:
                named = isinstance(s.by, str)
                t_factor = tangent(s.by) if named else _through_rows(s.by, point, tangent)
            target *= point.factor
            if t_factor is not None:
                target += t_factor * point.before
        else:
            t_delta = _through_rows(s.delta, point, tangent)
            if t_delta is not None:
                target += t_delta


def _through_rows(function, point, tangent):
    """Tangents of a function of what a statement read, a row per column; None is zero."""
    reads = {name: tangent(name) for name in point.reads if name != "t"}
    moving = {name: x for name, x in reads.items() if x is not None}
    if not moving:
        return None
    there = {
        name: homes.beside(np.broadcast_to(point.reads[name], x.shape), x)
        for name, x in moving.items()
    }
    return _through(function, point.reads | there, moving)
