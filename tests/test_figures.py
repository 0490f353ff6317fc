"""The figures of the 2015 paper: at published numbers where that is quick, and quick runs."""

import sys
from pathlib import Path

import numpy as np
import pytest

import revgrad as rg

pytest.importorskip("tyro", reason="the examples need `pip install revgrad[examples]`")
EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(autouse=True)
def examples_can_be_imported(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    yield
    for name in [k for k, m in sys.modules.items() if _is_example(m)]:
        del sys.modules[name]


def _is_example(module):
    return (getattr(module, "__file__", None) or "").startswith(str(EXAMPLES))


def beside_the_paper(example, record):
    """(the paper's number, ours) by name."""
    from_record = {}
    for what, (number, key) in example.PAPER.items():
        found = record
        for part in key.split("/"):
            found = found[int(part) if isinstance(found, list) else part]
        from_record[what] = number, found
    return from_record


# Figure 1.


def test_figure_1(tmp_path):
    import figure1_two_weights as figure

    found = figure.main(figure.Settings(tmp_path))
    np.testing.assert_allclose(found, figure_1_by_hand(figure), rtol=1e-8)
    record = rg.records.Record(tmp_path / "figure1_two_weights.json", figure.Settings(tmp_path))
    for what, (paper, ours) in beside_the_paper(figure, record).items():
        digits = len(f"{paper:.8g}".partition(".")[2])
        assert abs(ours - paper) <= 0.51 * 10.0**-digits, what
    assert record["losses one step earlier"][2] < record["final losses"][2]  # it goes past
    assert (tmp_path / "figure1_two_weights.png").stat().st_size > 10_000


def figure_1_by_hand(figure):
    """The authors' recursions in plain NumPy: only the scaling is by n/d."""
    gradient = rg.grad(figure.surface)
    log_rate, logit, velocities, losses = np.full(50, -4.5), np.full(50, np.log(99)), [0, 0], []
    for _ in range(3):
        rates, momenta = np.exp(log_rate), 1 / (1 + np.exp(-logit))
        w, v, trail = figure.START, np.zeros(2), []
        for rate, m in zip(rates, momenta, strict=True):
            trail.append((w, v, g := gradient(w)))
            v = (np.trunc(m * 2**16) + 1) / 2**16 * v - (1 - m) * g
            w = w + rate * v
        losses.append(figure.surface(w))
        ends = [v for _, v, _ in trail[1:]] + [v]
        dw, dv, slopes = gradient(w), np.zeros(2), np.zeros((2, 50))
        for t in reversed(range(50)):
            (w, v, g), m = trail[t], momenta[t]
            slopes[0, t] = rates[t] * (dw @ ends[t])
            dv = dv + rates[t] * dw
            slopes[1, t] = m * (1 - m) * (dv @ (v + g))
            dw = dw - rg.hvp(figure.surface, (w,), ((1 - m) * dv,))[1]
            dv = m * dv
        velocities = [0.9 * v - 0.1 * s for v, s in zip(velocities, slopes, strict=True)]
        log_rate, logit = log_rate + 0.01 * velocities[0], logit + 0.01 * velocities[1]
    return losses
