"""Names for those who add to revgrad: rules, optimizers, adjoints.

define(np.cbrt, np.cbrt, push=[lambda t, out, x: t / (3 * out**2)],
       pull=[lambda ct, out, x: ct / (3 * out**2)])     # a rule, both modes
elementwise((np.cbrt,), lambda out, x: 1 / (3 * out**2))  # the same, entry by entry

@dataclass(frozen=True, eq=False)
class MyMomentum(Optimizer):                            # an optimizer: its statements
    learning_rate: Any
    statements: ClassVar = (Scale(...), Add(...))

@as_tree
@dataclass
class Layer:                                            # a tree: of its fields
    weights: np.ndarray
    bias: np.ndarray
"""

from revgrad.arrays import functions
from revgrad.rules.row import cast, composite, constant, define, elementwise, match, unbroadcast
from revgrad.statements import Add, Optimizer, Scale
from revgrad.tape import Primitive
from revgrad.transforms import as_tree
from revgrad.wrappers import Wrapper

__all__ = [
    "Add",
    "Optimizer",
    "Primitive",
    "Scale",
    "Wrapper",
    "as_tree",
    "cast",
    "composite",
    "constant",
    "define",
    "elementwise",
    "functions",
    "match",
    "unbroadcast",
]
