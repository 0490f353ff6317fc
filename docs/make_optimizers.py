"""Write the table of optimizers in optimizers.md from the code: python docs/make_optimizers.py"""

import re
from pathlib import Path

import revgrad as rg
from revgrad.statements import written

PAGE = Path(__file__).parent / "optimizers.md"
BEGIN, END = "<!-- the table: docs/make_optimizers.py -->\n", "<!-- its end -->"
SHOWN = [
    rg.Momentum(0.1, weight_decay=0.1), rg.HeavyBall(0.1, weight_decay=0.1), rg.Adam(0.1),
    rg.AdamW(0.1), rg.RMSProp(0.1, momentum=0.9), rg.AdaGrad(0.1, momentum=0.9),
    rg.Leapfrog(0.1, mass=1.0, tempering=0.9), rg.SGD(0.1, 0.1), rg.Nesterov(0.1), rg.RMSProp(0.1),
    rg.AdaGrad(0.1), rg.AdaDelta(), rg.Lion(0.1), rg.SignDescent(0.1), rg.Clip(rg.SGD(0.1), 1.0),
    rg.ClipByGlobalNorm(rg.SGD(0.1), 1.0), rg.WeightAverage(rg.SGD(0.1)),
    rg.AuxAverage(rg.SGD(0.1)),
]  # fmt: skip


def row(optimizer):
    kind = type(optimizer)
    given = [k for k in ("momentum", "weight_decay") if k in optimizer.hyper]
    given = [k for k in given if kind.__dataclass_fields__[k].default is None]
    name = f"`{kind.__name__}`" + (f" with `{'`, `'.join(given)}`" if given else "")
    if hasattr(optimizer, "optimizer"):
        wrapped = {written(s) for s in optimizer.optimizer.statements}
        undo = "as what it wraps"
        lines = [line for s in optimizer.statements if (line := written(s)) not in wrapped]
        name += ", around `SGD`" if optimizer.rewrites else ""
    else:
        undo, lines = "yes" if optimizer.reversible else "no", map(written, optimizer.statements)
    source = re.search(r"Source: (.*?\d{4}(?:, \w+ \d+)?(?:; .*?\d{4})?)\.", kind.__doc__, re.S)
    source = " ".join(source.group(1).split()) if source else ""
    return f"| {name} | {undo} | {'<br>'.join(f'`{line}`' for line in lines)} | {source} |"


def table():
    head = ["| | reversible | statements | source |", "|---|---|---|---|"]
    return "\n".join([*head, *map(row, SHOWN)]) + "\n"


if __name__ == "__main__":
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    after = rest.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}{table()}{END}{after}", encoding="utf-8")
