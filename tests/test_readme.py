"""The fences of the README run as one script."""

import re
from pathlib import Path

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_the_code_of_the_readme_runs():
    fences = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(fences) == 2
    exec(compile("\n".join(fences), "README.md", "exec"), {"__name__": "readme"})


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 120
