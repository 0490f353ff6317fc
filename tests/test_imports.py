"""The house keeps its order: imports point downward only, and optional packages are optional."""

import ast
import sys
from pathlib import Path

import pytest

import revgrad

PACKAGE = Path(revgrad.__file__).parent

# Lowest first. Real numbers and integers are two columns that do not know each other; `program` is
# where they meet. A name stands for the module and, if it is a package, for all inside.
REALS = (
    "blas",
    "tape",
    "arrays",
    "rules",
    "transforms",
    "record",
    "narrow",
    "stacked",
    "fuse",
    "replay",
    "captures",
    "compiled",
    "lanes",
    "linear_map",
    "custom",
)
INTEGERS = ("_ext", "ratio", "files", "buffer", "fixed")
MIDDLE = (
    "report",
    "hyper",
    "state",
    "constraints",
    "tuning",
    "statements",
    "optimizers",
    "wrappers",
    "pushes",
    "recording",
    "gradient",
    "step",
    "schedule",
    "passes",
    "snapshots",
    "program",
    "noise",
    "memories",
    "implicit",
    "adjoints",
    "choice",
    "resume",
    "arguments",
    "sweeps",
    "unrolled",
    "columns",
    "stepping",
    "tangents",
    "train",
    "cells",
    "scan",
    "search_log",
)
TOP = ("online", "outer", "diagnose", "nn", "data", "interop", "plots", "records", "scipy")
DOOR = ("extend", "testing", "__init__", "__main__")
EVERYWHERE = {"errors"}
HOMES = "_ext.homes"  # where SciPy's functions are, by kind of array: no integers in it
FORBIDDEN_NAMES = {"utils", "util", "helpers", "common", "misc"}
CORE = {"numpy", "gmpy2", "optree", "threadpoolctl", "tqdm"}


def allowed():
    """{module: the modules it may import}, besides itself and `errors`."""
    table = {}
    for column in (REALS, INTEGERS):
        table |= {name: set(column[:k]) for k, name in enumerate(column)}
    table["replay"].add("_ext")  # for _ext.graphs, which launches its calls on a GPU
    table["fuse"].add("_ext")  # for _ext.chains, which runs NumPy's loops and knows no integers
    for name in ("rules", "lanes", "linear_map", *INTEGERS):
        table[name].add(HOMES)
    below = {HOMES, *REALS, *INTEGERS}
    for name in MIDDLE:
        table[name] = set(below)
        below.add(name)
    table |= {name: set(below) for name in TOP}
    below |= set(TOP)
    for name in DOOR:
        table[name] = set(below)
        below.add(name)
    return table | {"errors": set()}


def module_name(path, root):
    """`rules/linear.py` is "rules.linear", `rules/__init__.py` "rules.__init__"."""
    return ".".join(path.relative_to(root).with_suffix("").parts)


def imported_modules(tree, name, known):
    """Top-level names within the package that module `name` imports anywhere in its text."""
    package = ["revgrad", *name.split(".")[:-1]]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            targets = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            up = package[: len(package) - node.level + 1] if node.level else []
            base = up + (node.module.split(".") if node.module else [])
            targets = [[*base, alias.name] for alias in node.names]
        else:
            continue
        for target in targets:
            if target[0] == "revgrad":
                # `from revgrad import grad` reads the door, unless the name is a module's.
                inside = target[1] if len(target) > 1 else "__init__"
                inside = HOMES if target[1:3] == HOMES.split(".") else inside
                yield node.lineno, inside if inside in known else "__init__"


def violations(root):
    """One line for each import that points upward or across, and each module without a place."""
    table = allowed()
    known = {HOMES, *table}
    found = []
    for path in sorted([*root.rglob("*.py"), *root.rglob("*.pyx")]):
        name = module_name(path, root)
        top = name.split(".")[0]
        if top in FORBIDDEN_NAMES or top not in table:
            found.append(f"{name}: no place in the order; add it to the table in this test")
            continue
        if path.suffix != ".py":
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for line, target in imported_modules(tree, name, known):
            if target not in table[top] | EVERYWHERE | {top}:
                found.append(f"{name}:{line} imports {target}")
    return found


def foreign_imports(path):
    """Top-level names of packages that `path` imports when it is itself imported."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = set()
    for node in tree.body:
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module.split(".")[0])
    return names - set(sys.stdlib_module_names) - {"revgrad"}


def test_imports_point_downward():
    assert violations(PACKAGE) == []


@pytest.mark.parametrize(
    ("module", "line", "target"),
    [
        ("tape.py", "from .arrays import wrap", "arrays"),
        ("tape.py", "import revgrad.rules.linear", "rules"),
        ("arrays.py", "from revgrad import grad", "__init__"),
        ("arrays.py", "from . import transforms", "transforms"),
        ("rules/linear.py", "from ..transforms import vjp", "transforms"),
        ("rules/linear.py", "def f():\n    from .. import transforms", "transforms"),
        ("fixed.py", "from .tape import trace", "tape"),
        ("rules/linear.py", "from .._ext import exact", "_ext"),
        ("_ext/reference.py", "from ..ratio import Ratio", "ratio"),
        ("adjoints.py", "from .train import train", "train"),
        ("train.py", "from .outer import minimize", "outer"),
        ("plots.py", "from .data import mnist", "data"),
        ("errors.py", "from . import tape", "tape"),
    ],
)
def test_a_planted_upward_import_is_caught(tmp_path, module, line, target):
    path = tmp_path / module
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"import numpy\nfrom __future__ import annotations\n{line}\n")
    (found,) = violations(tmp_path)
    assert found.startswith(module_name(path, tmp_path)) and found.endswith(f"imports {target}")


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("arrays.py", "from .tape import Box"),
        (
            "rules/linear.py",
            "from ..arrays import wrap\nfrom .row import row\nfrom ..errors import *",
        ),
        ("rules/__init__.py", "from . import linear"),
        ("fixed.py", "from ._ext import exact\nfrom .ratio import Ratio"),
        ("program.py", "from . import fixed, tape"),
        ("adjoints.py", "from .program import Program"),
        ("outer.py", "from revgrad.train import train"),
        ("__init__.py", "from .plots import schedules"),
        ("testing.py", "import revgrad.rules.linear, numpy"),
    ],
)
def test_a_downward_import_is_let_through(tmp_path, module, line):
    path = tmp_path / module
    path.parent.mkdir(exist_ok=True)
    path.write_text(line)
    assert violations(tmp_path) == []


@pytest.mark.parametrize("module", ["utils.py", "rules2/linear.py"])
def test_a_module_without_a_place_is_caught(tmp_path, module):
    path = tmp_path / module
    path.parent.mkdir(exist_ok=True)
    path.write_text("")
    (found,) = violations(tmp_path)
    assert "no place" in found


# Modules that are imported when the package that they are about is there.
ABOUT = {"rules.special": {"scipy"}, "scipy": {"scipy"}, "_ext.cuda": {"cupy"},
         "_ext.products": {"cupy"}}  # fmt: skip


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.stem)
def test_only_core_dependencies_are_imported_at_once(path):
    name = module_name(path, PACKAGE)
    about = ABOUT.get(name, ABOUT.get(name.split(".")[0], set()))
    assert foreign_imports(path) <= CORE | about


MAY_NAME_CUPY = ("_ext", "data", "interop")


def names_of_gpus(path):
    """Where a file's code, not its text for people, says cupy."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if "cupy"
        in (
            getattr(node, "id", None), getattr(node, "attr", None), getattr(node, "value", None),
            getattr(node, "module", None), *(a.name for a in getattr(node, "names", ())
                                             if isinstance(a, ast.alias)),
        )
    ]  # fmt: skip


def test_no_kind_of_array_is_asked_for_elsewhere():
    for path in PACKAGE.rglob("*.py"):
        if module_name(path, PACKAGE).split(".")[0] not in MAY_NAME_CUPY:
            assert names_of_gpus(path) == [], path


@pytest.mark.parametrize(
    "line", ["import cupy", "from cupy import ndarray", 'x = "cupy"', "cupy.zeros(3)", "f(x.cupy)"]
)
def test_a_planted_kind_is_caught(tmp_path, line):
    path = tmp_path / "nn.py"
    path.write_text(line)
    assert names_of_gpus(path)


def test_the_tape_knows_no_arrays():
    assert foreign_imports(PACKAGE / "tape.py") == set()
