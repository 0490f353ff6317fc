"""The page on optimizers: its table is the code's, and its code runs."""

import re
import runpy
from pathlib import Path

import revgrad as rg

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "optimizers.md").read_text(encoding="utf-8")


def test_the_table_is_what_the_code_says():
    made = runpy.run_path(str(DOCS / "make_optimizers.py"))
    assert made["table"]() in PAGE, "run python docs/make_optimizers.py"
    shown = {type(optimizer) for optimizer in made["SHOWN"]}
    kinds = {x for x in vars(rg).values() if isinstance(x, type) and hasattr(x, "undo_order")}
    assert shown == kinds


def test_the_code_of_the_page_runs():
    fences = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(fences) == 2
    exec(compile("\n".join(fences), "optimizers.md", "exec"), {"__name__": "page"})
