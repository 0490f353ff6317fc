"""Pages of the documentation that are made from the code are up to date."""

import runpy
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"


def test_the_table_of_adjoints_is_up_to_date():
    made = runpy.run_path(str(DOCS / "make_adjoints.py"))
    text = (DOCS / "adjoints.md").read_text(encoding="utf-8")
    assert text == made["page"](text), "run python docs/make_adjoints.py"
    assert "| `Momentum` | yes | yes | yes" in text
    assert "| `SGD` | no: `Checkpointed(20)` | yes | yes" in text


def test_the_list_of_functions_is_that_of_the_registry():
    found = runpy.run_path(str(DOCS / "make_functions.py"))
    kept = (DOCS / "functions.md").read_text(encoding="utf-8")
    if f"For NumPy {found['VERSION']}." not in kept:
        pytest.skip("the list is that of another NumPy, which has other functions")
    assert kept == found["text"](), "run: python docs/make_functions.py > docs/functions.md"
