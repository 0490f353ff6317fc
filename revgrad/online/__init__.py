"""Training with hyperparameters that learn as it goes on: `fit`, towers of optimizers, `RTRL`."""

from revgrad.online.fit import fit
from revgrad.online.paths import Paths
from revgrad.online.rtrl import RTRL

__all__ = ["RTRL", "Paths", "fit"]
