"""Densities of scipy.stats, written in functions that have rules.

Each name holds functions as SciPy's distribution does: stats.norm.logpdf(x, loc, scale). A
distribution function has a derivative in x, and in parameters where one exists in closed form.
"""

import numpy as np
from scipy import special
from scipy.special import betainc, gammainc, gammaincc, gammaln, log_ndtr, ndtr, stdtr, xlogy

LOG_2PI = float(np.log(2 * np.pi))


class _Density:
    """From logpdf(x, *parameters, loc=0, scale=1) the rest that follows from it."""

    @classmethod
    def pdf(cls, x, *args, **kwargs):
        return np.exp(cls.logpdf(x, *args, **kwargs))

    @classmethod
    def sf(cls, x, *args, **kwargs):
        return 1 - cls.cdf(x, *args, **kwargs)

    @classmethod
    def logcdf(cls, x, *args, **kwargs):
        return np.log(cls.cdf(x, *args, **kwargs))

    @classmethod
    def logsf(cls, x, *args, **kwargs):
        return np.log(cls.sf(x, *args, **kwargs))


class norm(_Density):
    """The normal distribution."""

    @staticmethod
    def logpdf(x, loc=0.0, scale=1.0):
        z = (x - loc) / scale
        return -0.5 * z * z - 0.5 * LOG_2PI - np.log(scale)

    @staticmethod
    def cdf(x, loc=0.0, scale=1.0):
        return ndtr((x - loc) / scale)

    @staticmethod
    def sf(x, loc=0.0, scale=1.0):
        return ndtr((loc - x) / scale)

    @staticmethod
    def logcdf(x, loc=0.0, scale=1.0):
        return log_ndtr((x - loc) / scale)

    @staticmethod
    def logsf(x, loc=0.0, scale=1.0):
        return log_ndtr((loc - x) / scale)


class t(_Density):
    """Student's distribution."""

    @staticmethod
    def logpdf(x, df, loc=0.0, scale=1.0):
        z = (x - loc) / scale
        constant = gammaln((df + 1) / 2) - gammaln(df / 2) - 0.5 * np.log(df * float(np.pi))
        return constant - (df + 1) / 2 * np.log1p(z * z / df) - np.log(scale)

    @staticmethod
    def cdf(x, df, loc=0.0, scale=1.0):
        return stdtr(df, (x - loc) / scale)


class beta(_Density):
    """The beta distribution."""

    @staticmethod
    def logpdf(x, a, b):
        return xlogy(a - 1, x) + special.xlog1py(b - 1, -x) - special.betaln(a, b)

    @staticmethod
    def cdf(x, a, b):
        return betainc(a, b, x)


class gamma(_Density):
    """The gamma distribution."""

    @staticmethod
    def logpdf(x, a, loc=0.0, scale=1.0):
        z = (x - loc) / scale
        return xlogy(a - 1, z) - z - gammaln(a) - np.log(scale)

    @staticmethod
    def cdf(x, a, loc=0.0, scale=1.0):
        return gammainc(a, (x - loc) / scale)


class chi2(_Density):
    """The chi-square distribution."""

    @staticmethod
    def logpdf(x, df):
        return gamma.logpdf(x, df / 2, 0.0, 2.0)

    @staticmethod
    def cdf(x, df):
        return gammainc(df / 2, x / 2)


class poisson:
    """The Poisson distribution; its derivative is in mu."""

    @staticmethod
    def logpmf(k, mu):
        return xlogy(k, mu) - gammaln(k + 1) - mu

    @classmethod
    def pmf(cls, k, mu):
        return np.exp(cls.logpmf(k, mu))

    @staticmethod
    def cdf(k, mu):
        return gammaincc(np.floor(k) + 1, mu)


class dirichlet(_Density):
    """The Dirichlet distribution: the first axis of x is the simplex's."""

    @staticmethod
    def logpdf(x, alpha):
        weights = np.reshape(alpha, (-1,) + (1,) * (np.ndim(x) - 1))
        constant = gammaln(np.sum(alpha)) - np.sum(gammaln(alpha))
        return np.sum(xlogy(weights - 1, x), axis=0) + constant


class multivariate_normal(_Density):
    """The normal distribution of vectors, in the last axis of x. cov: a positive matrix."""

    @staticmethod
    def logpdf(x, mean, cov):
        away = x - mean
        weighed = np.matmul(away, np.linalg.inv(cov))
        constant = np.linalg.slogdet(cov)[1] + np.shape(cov)[-1] * LOG_2PI
        return -0.5 * (np.sum(weighed * away, axis=-1) + constant)

    @staticmethod
    def entropy(mean, cov):
        return 0.5 * (np.shape(cov)[-1] * (1 + LOG_2PI) + np.linalg.slogdet(cov)[1])
