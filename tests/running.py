"""Examples in subfolders, run at their quick sizes: twice, the second time from their records."""

import importlib
import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]


def importable(folder):
    """A fixture for a module of tests: within them, examples of examples/<folder> are imported."""
    path = str(ROOT / "examples" / folder)

    @pytest.fixture(autouse=True)
    def examples_can_be_imported(monkeypatch):
        monkeypatch.syspath_prepend(path)
        yield
        for name, module in [*sys.modules.items()]:
            if (getattr(module, "__file__", None) or "").startswith(path):
                del sys.modules[name]

    return examples_can_be_imported


def run(name, folder, **settings):
    """(what main returns, the values of its record); all that it compares with a paper is there."""
    example = importlib.import_module(name)
    chosen = example.Settings(folder, quick=True, **settings)
    first, values = example.main(chosen), values_in(folder / f"{name}.json")
    assert (folder / f"{name}.png").stat().st_size > 8_000
    example.main(chosen)
    assert values_in(folder / f"{name}.json") == values
    looked_up = runpy.run_path(str(ROOT / "docs" / "make_reproduction.py"))["looked_up"]
    for what, (_, key) in example.PAPER.items():
        assert np.isfinite(looked_up(values, key)), what
    return first, values


def values_in(path):
    return json.loads(path.read_text(encoding="utf-8"))["values"]
