"""Write the table of docs/adjoints.md from the code: which optimizer goes with which adjoint.

python docs/make_adjoints.py
"""

import inspect
from pathlib import Path

import numpy as np

import revgrad as rg
from revgrad import optimizers, wrappers
from revgrad.extend import Optimizer, Wrapper

PAGE = Path(__file__).parent / "adjoints.md"
BEGIN, END = "<!-- begin: docs/make_adjoints.py -->\n", "<!-- end -->\n"


def bowl(params, hyper, batch):
    return np.sum((params - hyper) ** 2) + batch * 0.0


ADJOINTS = (
    rg.Reversible(),
    rg.Stored(),
    rg.Checkpointed(2),
    rg.Truncated(2),
    rg.Forward(),
    rg.Implicit(bowl, 0.0, tolerance=np.inf),
    rg.Unrolled(),
)


def kinds():
    """Optimizer classes in the order of their definition, then wrappers."""
    found = []
    for module in (optimizers, wrappers):
        own = [
            x
            for x in vars(module).values()
            if inspect.isclass(x) and x.__module__ == module.__name__
        ]
        own = [x for x in own if issubclass(x, Optimizer) and x is not Wrapper]
        found += sorted(own, key=lambda kind: inspect.getsourcelines(kind)[1])
    return found


def made(kind):
    """An instance with small values for what has no default; wrappers are around Momentum."""
    given = inspect.signature(kind).parameters.values()
    values = {p.name: 0.1 for p in given if p.default is p.empty}
    return kind(**values | ({"optimizer": rg.Momentum(0.1)} if "optimizer" in values else {}))


def entry(kind, adjoint):
    """What comes of a short run and its derivative with respect to hyper."""
    optimizer = made(kind)
    aux = "aux" in optimizer.reads
    loss = (lambda p, h, b: (bowl(p, h, b), p)) if aux else bowl
    train = lambda hyper: np.sum(
        rg.train(loss, np.ones(3), optimizer, [0.0] * 4, hyper=hyper, adjoint=adjoint, has_aux=aux)
    )
    try:
        rg.grad(train)(0.5)
    except TypeError as error:
        advice = str(error).rsplit("adjoint=", 1)[1].split(",")[0].rstrip(".")
        return f"no: `{advice}`"
    return "yes"


def table():
    names = [repr(adjoint).replace("memory='1GB'", "") for adjoint in ADJOINTS]
    names = ["Implicit(...)" if name.startswith("Implicit") else name for name in names]
    rows = ["| | " + " | ".join(f"`{name}`" for name in names) + " |", "|---" * 8 + "|"]
    for kind in kinds():
        cells = " | ".join(entry(kind, adjoint) for adjoint in ADJOINTS)
        rows.append(f"| `{kind.__name__}` | {cells} |")
    return "\n".join(rows) + "\n"


def page(text):
    """The page with its table made anew."""
    before, rest = text.split(BEGIN)
    return before + BEGIN + "\n" + table() + "\n" + END + rest.split(END)[1]


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
