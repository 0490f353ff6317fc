"""Pages of the documentation that are made from the code are up to date."""

import runpy
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def test_the_table_of_adjoints_is_up_to_date():
    made = runpy.run_path(str(DOCS / "make_adjoints.py"))
    text = (DOCS / "adjoints.md").read_text(encoding="utf-8")
    assert text == made["page"](text), "run python docs/make_adjoints.py"
    assert "| `Momentum` | yes | yes | yes" in text
    assert "| `SGD` | no: `Checkpointed(20)` | yes | yes" in text
