"""Samples of SciPy's special functions."""

from samples import add, direct
from scipy import special

from revgrad.rules import special as _rules

SHAPES = ((),), ((3,),), ((2, 3),)
_pairs = ((3,), (3,)), ((2, 3), ()), ((), (3,))
for _name in [
    "erf",
    "erfc",
    "erfcx",
    "erfi",
    "dawsn",
    "ndtr",
    "log_ndtr",
    "expit",
    "log_expit",
    "exp10",
    "i0",
    "i1",
    "j0",
    "j1",
]:
    add([getattr(special, _name)], direct, *SHAPES)
for _name in [
    "gamma",
    "gammaln",
    "loggamma",
    "rgamma",
    "psi",
    "entr",
    "cbrt",
    "log1p",
    "y0",
    "y1",
    "k0",
    "k1",
    "k0e",
    "k1e",
]:
    add([getattr(special, _name)], direct, *SHAPES, domains="positive")
for _name in ["i0e", "i1e"]:
    add([getattr(special, _name)], direct, *SHAPES, domains="away from 0")
add([special.expm1], direct, *SHAPES)
add([special.erfinv], direct, *SHAPES, domains="unit")
for _name in ("erfcinv", "logit", "ndtri"):
    add([getattr(special, _name)], lambda f, x: f(0.5 + 0.4 * x), *SHAPES, domains="unit")
for _name in ["xlogy", "xlog1py", "rel_entr", "kl_div", "beta", "betaln", "poch"]:
    add([getattr(special, _name)], direct, *_pairs, domains="positive")
add([special.huber], lambda f, d, r: f(d + 0.2, r), *_pairs, domains=("positive", "large"))
add([_rules.ZETA], lambda f, x: f(2.5, x), *SHAPES, domains="positive")
for _name in ("gammainc", "gammaincc"):
    add([getattr(special, _name)], lambda f, x: f(1.5, x), *SHAPES, domains="positive")
add([special.betainc], lambda f, x: f(1.5, 2.5, 0.5 + 0.4 * x), *SHAPES, domains="unit")
for _name in ["jv", "yv", "iv", "kv", "ive", "kve"]:
    add([getattr(special, _name)], lambda f, x: f(1.5, x), *SHAPES, domains="positive")
add([special.yn], lambda f, x: f(2, x), *SHAPES, domains="positive")
add([special.stdtr], lambda f, x: f(3.5, x), *SHAPES)
add([special.gammasgn], direct, ((3,),), domains="away from 0")
