"""What a run has to say about itself."""

from dataclasses import dataclass, field, fields
from math import inf, log


@dataclass
class Report:
    """Facts about a run; make one, pass it to `train(report=...)`, and read it afterwards.

    Filled on the way forward; `returned_exactly`, `growth`, `replays` and `seconds_back` by the
    pull-back.
    Unrolled() fills only `adjoint`, `steps`, `weights`, `watched` and `seconds`.
    """

    adjoint: str = ""  # the adjoint used, and why, if revgrad chose it
    steps: int = 0  # steps taken
    weights: int = 0  # numbers in the params
    bits: float = 0.0  # information kept by the buffers: 16 words + sum log2(head / first head)
    bits_per_weight_step: float = 0.0
    bound: float = 0.0  # the mean of log2(d/n) per weight and step: what scaling destroys
    bytes_kept: int = 0  # held by the adjoint beyond one state
    bytes_stored: int = 0  # what keeping every state in the params' dtype would take
    fraction_bits: dict = field(default_factory=dict)  # variable -> bits after the point
    largest: dict = field(default_factory=dict)  # variable -> (largest |x| seen, range)
    noise_floor: dict = field(default_factory=dict)  # variable -> most that rounding can have added
    drowned: float = 0.0  # share of weights whose steps are rounding noise by more than 1%
    watched: list = field(default_factory=list)  # what `watch` returned, per step
    seconds: float = 0.0  # forwards
    replays: int = 0  # steps taken again on the way back
    blas_threads: int | None = None
    returned_exactly: bool | None = None  # None until Reversible() has come back, or failed to
    growth: list = field(default_factory=list)  # (step, norm of dL/dparams) on the way back
    seconds_back: float = 0.0

    def clear(self):
        """Forget an earlier run; returns the report."""
        vars(self).update(vars(Report()))
        return self

    @property
    def effective_steps(self):
        """How many of the looks at dL/dparams carry it: (sum of norms)^2 / sum of their squares."""
        norms = [norm for _, norm in self.growth]
        largest = max(norms, default=0.0)
        if not 0 < largest < inf:
            return None
        shares = [norm / largest for norm in norms]
        return sum(shares) ** 2 / sum(x * x for x in shares)

    @property
    def chaos(self):
        """Growth of log |dL/dparams| per step on the way back; above 0, sensitivity explodes."""
        steps = [(t, norm) for t, norm in self.growth if norm > 0]
        if len(steps) < 2:
            return None
        (last, at_last), (first, at_first) = steps[0], steps[-1]
        return log(at_first / at_last) / (last - first)

    def __str__(self):
        rows = [(f.name, getattr(self, f.name)) for f in fields(self) if f.name != "growth"]
        rows.append(("chaos", self.chaos))
        return "\n".join(
            f"{name:>20}  {value}" for name, value in rows if value not in ("", [], {})
        )
