"""The page of how-tos runs from top to bottom."""

import re
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "howto.md"


def test_the_page_of_how_tos_runs():
    fences = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(fences) > 8
    space = {"__name__": "howto"}
    for fence in fences:
        exec(compile(fence, "howto.md", "exec"), space)
    assert abs(space["bound_slope"]) > 0 and abs(space["rate_slope"]) > 0
    assert space["found"].best_value < space["found"].values[0]
    assert len(space["rows"]) == 20 and set(space["rows"][0]) == {"step", "loss"}
    assert space["running"]["mean"].shape == (8,)


def test_the_page_of_online_methods_runs():
    text = (PAGE.parent / "online.md").read_text(encoding="utf-8")
    fences = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert fences
    for fence in fences:
        exec(compile(fence, "online.md", "exec"), {"__name__": "online"})
