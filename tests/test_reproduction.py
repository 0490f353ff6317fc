"""docs/make_reproduction.py: pages from records, runs that go on, refusals."""

import json
import runpy
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"

EXAMPLE = '''"""Find a number (Somebody 1999, table 2).

A story.

    python examples/found.py
"""
import json, sys, neighbour
from pathlib import Path

PAPER = {"number": (2.0, "a/b/1"), "other": (None, "text"), "zero": (0.0, "x/y")}
PAPER["absent"] = 1.0, "a/c"

if __name__ == "__main__":
    record = Path(sys.argv[-1]) / "found.json"  # as Record("found.json") does
    runs = json.loads(record.read_text())["values"]["text"] if record.exists() else ""
    values = {"a": {"b": [1, 2.5]}, "text": runs + "!", "x/y": 0.25}
    values["bits per weight and step"] = 0.152
    made = {"values": values, "seconds": 90.0}
    if runs:
        made["finished"] = {"peak memory (MB)": 12.4, "processor": "p"}
    record.write_text(json.dumps(made))
    record.with_suffix(".png").write_bytes(b"picture")
    sys.exit(not runs)
'''


@pytest.fixture
def maker(tmp_path):
    """The script's functions, on a tree with one example in it."""
    made = runpy.run_path(str(DOCS / "make_reproduction.py"))
    names = made["main"].__globals__
    (tmp_path / "examples" / "towers").mkdir(parents=True)
    (tmp_path / "examples" / "towers" / "found.py").write_text(EXAMPLE)
    (tmp_path / "examples" / "towers" / "neighbour.py").write_text('"""No example."""\n')
    names["EXAMPLES"] = tmp_path / "examples"
    names["RECORDS"], names["WORK"] = tmp_path / "docs", tmp_path / "build"
    names["PAGE"] = tmp_path / "page.md"
    names["TITLES"] = {".": "First", "towers": "Somebody 1999"}
    names["OPTIONS"] = {"found": ("--hard",)}
    return names


def test_what_was_killed_goes_on_and_what_is_finished_stays(maker):
    with pytest.raises(SystemExit, match=r"did not come to their end: found"):
        maker["main"](["--run"])
    assert "Not run yet" in maker["PAGE"].read_text()
    maker["main"](["--run"])
    maker["main"](["--run", "found"])  # finished: not run a third time
    assert json.loads((maker["RECORDS"] / "found.json").read_text())["values"]["text"] == "!!"


def test_the_page_has_the_papers_numbers_beside_ours(maker):
    for _ in range(2):
        maker["run"](maker["EXAMPLES"] / "towers" / "found.py")
    (maker["RECORDS"] / "found.md").write_text("A note on what differs.")
    page = maker["page"](maker["RECORDS"])
    for line in (
        "| number | 2 | 2.5 | +5.0e-01 (+25 %) |",
        "| other | - | !! | |",
        "| zero | 0 | 0.25 | +2.5e-01 |",
        "| absent | 1 | - | |",
        "## Somebody 1999",
        "[`towers/found.py`](../examples/towers/found.py) --hard",
        "### Find a number (Somebody 1999, table 2)",
        "A story.",
        "1.5 min, 12 MB, 0.152 bits per weight and step; p. [Record](reproduction/found.json).",
        "A note on what differs.",
        "![Find a number (Somebody 1999, table 2).](reproduction/found.png)",
    ):
        assert line in page.splitlines(), line
    assert "python examples" not in page and "neighbour" not in page


def test_names_of_no_example_are_refused(maker, capsys):
    with pytest.raises(SystemExit):
        maker["main"](["--run", "lost"])
    assert "no example lost; there are found" in capsys.readouterr().err


def test_the_page_of_all_examples_that_there_are():
    pytest.importorskip("tyro", reason="the examples need `pip install revgrad[examples]`")
    made = runpy.run_path(str(DOCS / "make_reproduction.py"))
    page = made["page"]()
    for name in ("figure1_two_weights.py", "chaos.py", "towers/table1.py"):
        assert f"(../examples/{name})" in page
    assert {*made["ORDER"]} | {*made["OPTIONS"]} <= {f.stem for f in made["EXAMPLES"].rglob("*.py")}
