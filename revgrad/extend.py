"""Names for those who add to revgrad: rules, optimizers, adjoints.

define(np.cbrt, np.cbrt, push=[lambda t, out, x: t / (3 * out**2)],
       pull=[lambda ct, out, x: ct / (3 * out**2)])     # a rule, both modes
elementwise((np.cbrt,), lambda out, x: 1 / (3 * out**2))  # the same, entry by entry

@dataclass(frozen=True, eq=False)
class MyMomentum(Optimizer):                            # an optimizer: its statements
    learning_rate: Any
    statements: ClassVar = (Scale(...), Add(...))
"""

from revgrad.arrays import functions
from revgrad.rules.row import cast, composite, constant, define, elementwise, match, unbroadcast
from revgrad.statements import Add, Optimizer, Scale
from revgrad.tape import Primitive
from revgrad.wrappers import Wrapper

__all__ = [
    "Add",
    "Optimizer",
    "Primitive",
    "Scale",
    "Wrapper",
    "cast",
    "composite",
    "constant",
    "define",
    "elementwise",
    "functions",
    "match",
    "unbroadcast",
]
