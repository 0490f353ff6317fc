"""Training with hyperparameters that learn as it goes on: `fit`, towers of optimizers."""

from revgrad.online.fit import fit
from revgrad.online.paths import Paths

__all__ = ["Paths", "fit"]
