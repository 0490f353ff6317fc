"""FixedPoint(rounding="truncated"): the recursions of the 2015 code, written out here by hand."""

import numpy as np
import pytest
from test_adjoints import BACK, FORMS, problem, pulled
from training import bits, distance

import revgrad as rg

AUTHORS = rg.FixedPoint(rounding="truncated")
STEPS = 40
FACTORS = {"a number": 0.9, "per step": np.linspace(0.5, 0.99, STEPS)}


def loss(w, hyper, batch):
    return np.mean((np.tanh(batch @ w) - hyper) ** 2) + 0.1 * np.sum(w**2)


def setting():
    rng = np.random.default_rng(0)
    return rng.standard_normal((STEPS, 7, 5)), rng.standard_normal(5), rng.standard_normal(5)


def by_hand(rate, momenta, wanted):
    """(w, dw0, drate, dmomenta) of <w_T, wanted>: scaling by n/d, everything else by the float."""
    batches, w, _ = setting()
    gradient = rg.grad(loss)
    ratios = (np.trunc(momenta * 2**16) + 1) / 2**16
    v, trail = np.zeros(5), []
    for x, m, ratio in zip(batches, momenta, ratios, strict=True):
        g = gradient(w, 0.3, x)
        scaled = ratio * v
        trail.append((w, v, g))
        v = scaled - (1 - m) * g
        w = w + rate * v
    end, vs = w, [*(v for _, v, _ in trail[1:]), v]
    dw, dv, drate, dmomenta = wanted, np.zeros(5), 0.0, np.zeros(STEPS)
    for t in reversed(range(STEPS)):
        (w, v, g), m = trail[t], momenta[t]
        drate += dw @ vs[t]
        dv = dv + rate * dw
        dmomenta[t] = dv @ (v + g)
        dw = dw - rg.hvp(lambda p, x=batches[t]: loss(p, 0.3, x), (w,), ((1 - m) * dv,))[1]
        dv = m * dv
    return end, dw, drate, dmomenta


@pytest.mark.parametrize("momentum", FACTORS.values(), ids=FACTORS)
@pytest.mark.parametrize("adjoint", [*BACK, rg.Forward()], ids=repr)
def test_runs_and_derivatives_are_the_authors(adjoint, momentum):
    batches, w, wanted = setting()
    varies = np.ndim(momentum) > 0

    def trained(w, rate, momentum):
        momentum = rg.per_step(momentum) if varies else momentum
        optimizer = rg.Momentum(rate, momentum)
        options = {"adjoint": adjoint, "arithmetic": AUTHORS}
        return rg.train(loss, w, optimizer, list(batches), hyper=0.3, **options)

    out, pullback = rg.vjp(trained, w, 1.3, momentum)
    end, *expected = by_hand(1.3, np.broadcast_to(momentum, STEPS), wanted)
    expected[2] = expected[2] if varies else expected[2].sum()
    np.testing.assert_allclose(out, end, rtol=0, atol=1e-9)
    for found, one in zip(pullback(wanted), expected, strict=True):
        np.testing.assert_allclose(found, one, rtol=0, atol=1e-9 * np.max(np.abs(one)))


@pytest.mark.parametrize("kind", ["float64", "float32"])
@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("make", [rg.Momentum, rg.HeavyBall, rg.Adam])
def test_adjoints_agree_bit_for_bit(make, name, kind):
    start, answer = problem(make, name, kind)
    found = [pulled(answer, adjoint, start, arithmetic=AUTHORS) for adjoint in BACK]
    assert all(bits(one) == bits(found[0]) for one in found[1:])
    assert distance(found[0], pulled(answer, BACK[0], start)) > 1e-7  # the option does something


def test_another_rounding_is_refused():
    with pytest.raises(ValueError, match=r"rounding='up'; choose one of .*'nearest', 'trunc"):
        rg.FixedPoint(rounding="up")
