"""Optimizers that tune optimizers: what a tower does between a gradient and the step by it.

    level 0   params         Adam(1e-3, tuned_by=...)      the bottom
    level 1   its knobs      SGD(1e-5, tuned_by=...)
    level 2   SGD's knobs    ...

At a new gradient g, the knobs of level 0 made the latest params, so the derivative of the loss
with respect to them is the pull-back of g through that one step; that of level 1's knobs is the
pull-back of this through the step that made level 0's; and so on up. Then every level steps, the
top first, and each uses what the one above has just made. Source: Chandra et al. 2022, section 2.
"""

import numpy as np

from revgrad.arguments import spread_hyper
from revgrad.online.level import Level
from revgrad.statements import Optimizer


class Tower:
    """What tunes the bottom level; `fit` calls `look` at each gradient, then `move`.

    levels: the bottom, and those above it. slopes: per level that is tuned, the latest derivative
    of the loss with respect to its raw knobs, flat; 0 at the first step, when nothing depends on
    them yet. A tuner of another kind overrides `slope`, the derivative at the bottom.
    """

    def __init__(self, fitting, above):
        self.levels = [fitting.bottom]
        while isinstance(above, Optimizer):
            self.levels.append(_level(above, self.levels[-1].knobs, fitting.run.steps))
            above = above.tuned_by
        if above is not None:
            raise TypeError(
                f"{fitting.optimizer!r}: {type(above).__name__} can tune the optimizer at the "
                "bottom alone; above it put optimizers."
            )
        self.slopes = [np.zeros(level.knobs.layout.size) for level in self.levels[:-1]]
        self.first = True

    def slope(self, t, g):
        """Derivative of the loss at step t, whose gradient is g, for the bottom's raw knobs."""
        return self.levels[0].pull(g)

    def look(self, t, g):
        """Find the slopes at step t; g: the flat gradient."""
        if self.first:
            return
        ct = self.slopes[0] = self.slope(t, g)
        for k in range(1, len(self.slopes)):
            ct = self.slopes[k] = self.levels[k].pull(ct)

    def move(self, t):
        """Let every level above the bottom step. Raises: LeftDomain."""
        self.first = False
        for k in range(len(self.slopes), 0, -1):
            level, knobs = self.levels[k], self.levels[k - 1].knobs
            level.step(t, self.slopes[k - 1])
            knobs.raw = level.state["params"]
            knobs.check(t)

    def follow(self, t):
        """Take note of the bottom's step t, just taken."""

    # What there is to tell, and to keep.

    def told(self):
        """Name -> what else was found at this step."""
        return {}

    def values(self):
        """Name -> the hyperparameter that the latest step used; tuned_by.name one level up."""
        found = dict(self.levels[0].now)
        for k, level in enumerate(self.levels[1:-1], 1):
            found |= {"tuned_by." * k + name: x for name, x in level.now.items()}
        return found

    def parts(self):
        """Name -> flat vector: what `load` wants, between `look` and `move`."""
        found = {f"slope {k}": slope for k, slope in enumerate(self.slopes)}
        for k, level in enumerate(self.levels[1:], 1):
            found |= {f"level {k} {name}": x for name, x in level.state.items()}
        return found

    def load(self, parts):
        self.first = False
        self.slopes = [parts[f"slope {k}"] for k in range(len(self.slopes))]
        for k, level in enumerate(self.levels[1:], 1):
            level.state = {name: parts[f"level {k} {name}"] for name in level.state}
            self.levels[k - 1].knobs.raw = level.state["params"]


def _level(optimizer, knobs, steps):
    """The level above some knobs."""
    if "aux" in optimizer.reads:
        raise TypeError(
            f"{optimizer.name} reads the aux of the loss; it can only be at the bottom."
        )
    layout, raw = knobs.layout, knobs.raw
    spreads, values = spread_hyper(optimizer, steps, {"params": layout})
    first = lambda name, k: spreads[name].at_leaf(values[name], k, 0)
    start = optimizer.start(layout.split(raw), first)
    state = {"params": raw} | {
        name: layout.join(start[name]) if name in start else np.zeros(layout.size)
        for name in optimizer.variables
    }
    return Level(optimizer, spreads, values, state, lambda _: layout)


class Untuned:
    """What tunes nothing: every hyperparameter stays as it is."""

    def look(self, t, g):
        pass

    def move(self, t):
        pass

    def follow(self, t):
        pass

    def told(self):
        return {}

    def values(self):
        return {}

    def parts(self):
        return {}

    def load(self, parts):
        pass
