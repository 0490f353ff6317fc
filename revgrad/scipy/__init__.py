"""SciPy's functions that no NumPy protocol reaches, with derivatives: change the import.

    from revgrad.scipy.special import logsumexp
    from revgrad.scipy.stats import norm

On plain arrays they are SciPy's, up to rounding; what has no rule here is SciPy's own function.
SciPy's ufuncs (scipy.special.erf and the like) need none of this: they work as they are.
"""
