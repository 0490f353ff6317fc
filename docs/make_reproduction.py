"""Run the examples that reproduce published experiments, and write docs/reproduction.md.

    python docs/make_reproduction.py              the page, from the records in docs/reproduction
    python docs/make_reproduction.py --run        all at full size, then the page (`make figures`)
    python docs/make_reproduction.py --run chaos  this one alone

Full-size runs work in build/reproduction. What was killed goes on where it was; what is finished
there is not run again, and its record and pictures are copied to docs/reproduction.

On the page are the examples that keep a Record, NAME.json. What is compared is in a table PAPER,
{"what": (the paper's number, key), ...}; the key is that of our number in the record, "a/b/3" for
what is nested, and the paper's may be None. The page takes the docstring's paragraphs and, if there
are such files in docs/reproduction, NAME.md (what differs and why), NAME.png and NAME-*.png.
"""

import argparse
import json
import math
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
EXAMPLES, RECORDS, WORK = (
    ROOT / "examples",
    ROOT / "docs" / "reproduction",
    ROOT / "build" / "reproduction",
)
PAGE = ROOT / "docs" / "reproduction.md"

TITLES = {  # by folder in examples/
    ".": "Maclaurin, Duvenaud, Adams 2015: Gradient-based Hyperparameter Optimization through "
    "Reversible Learning",
    "towers": "Chandra, Xie, Ragan-Kelley, Meijer 2022: Gradient Descent: The Ultimate Optimizer",
    "online": "Im, Savin, Cho 2021: Online Hyperparameter Optimization",
    "long_horizon": "Micaelli, Storkey 2021: Gradient-based Hyperparameter Optimization over Long "
    "Horizons",
}
OPTIONS = {"learn_schedules": ("--start", "paper")}  # that full size needs
ORDER = (  # of the paper's figures; what is not here comes behind, by name
    "figure1_two_weights", "learn_schedules", "search_baselines", "smooth_hypergradients",
    "figure6_per_weight_l2", "penalty_groups", "learn_training_images", "omniglot_multitask",
    "chaos",
)  # fmt: skip

HEAD = """# Reproduction

Published numbers beside ours, made by `make figures` from one example each. Time is the
clock's over the whole run, which shared two cores with others, so up to four times what a run by
itself takes; memory is the peak of its process; bits are what is kept to run training backwards,
per weight and step. "Difference" is ours - paper's.

"""
BITS = "bits per weight and step"  # the key of a record, where there is one


def sections():
    """Title -> the examples that keep a record."""
    files = [f for f in EXAMPLES.rglob("*.py") if "Record(" in f.read_text(encoding="utf-8")]
    rank = {name: k for k, name in enumerate(ORDER)}
    files.sort(key=lambda f: (rank.get(f.stem, len(rank)), f.stem))
    folders = {f.parent.relative_to(EXAMPLES).as_posix(): None for f in files}
    known = [name for name in TITLES if name in folders]
    return {
        TITLES.get(name, name): [f for f in files if f.parent == EXAMPLES / name]
        for name in dict.fromkeys([*known, *sorted(folders)])
    }


def constants(example):
    """(docstring, PAPER or {}) of an example, imported with its neighbours, and forgotten again."""
    before = set(sys.modules)
    sys.path.insert(0, str(example.parent))
    try:
        found = runpy.run_path(str(example))
    finally:
        sys.path.remove(str(example.parent))
        for name in set(sys.modules) - before:
            if (getattr(sys.modules[name], "__file__", None) or "").startswith(str(EXAMPLES)):
                del sys.modules[name]
    return found["__doc__"] or "", found.get("PAPER", {})


def looked_up(values, key):
    """What a record has under a key, "a/b/3" for what is nested; None if it is not there."""
    if key in values:
        return values[key]
    for part in key.split("/"):
        try:
            values = values[int(part) if isinstance(values, list) else part]
        except (KeyError, IndexError):
            return None
    return values


def row(what, paper, ours):
    """(line of a table, the relative difference or None)."""
    if not isinstance(paper, int | float) or ours is None:
        return f"| {what} | {_shown(paper)} | {_shown(ours)} | |", None
    difference = ours - paper
    relative = abs(difference) / abs(paper) if paper else math.inf
    percent = f" ({100 * difference / abs(paper):+.2g} %)" if paper else ""
    return f"| {what} | {_shown(paper)} | {_shown(ours)} | {difference:+.1e}{percent} |", relative


def _shown(x):
    return f"{x:.8g}" if isinstance(x, int | float) else "-" if x is None else str(x)


def section(example, folder):
    """(Markdown about one example, its line in the overview)."""
    path, name = example.relative_to(EXAMPLES).as_posix(), example.stem
    docstring, paper = constants(example)
    title, *story = (part for part in docstring.split("\n\n") if not part.startswith("    "))
    link = f"[`{path}`](../examples/{path})"
    lines = [
        f"### {title.strip().rstrip('.')}",
        "",
        f"{link} {' '.join(OPTIONS.get(name, ()))}".strip(),
        "",
    ]
    lines += [part + "\n" for part in story]
    record = folder / f"{name}.json"
    if not record.exists():
        return "\n".join([*lines, "Not run yet."]) + "\n", f"| {link} | not run yet | | | | |"
    found = json.loads(record.read_text(encoding="utf-8"))
    values, took = found["values"], found.get("finished", {})
    rows = [row(what, number, looked_up(values, key)) for what, (number, key) in paper.items()]
    if rows:
        lines += ["| | paper | ours | difference |", "|---|---|---|---|", *(r for r, _ in rows), ""]
    seconds = found["seconds"]
    time = f"{seconds:.1f} s" if seconds < 60 else f"{seconds / 60:.1f} min"
    cost = [time, f"{took.get('peak memory (MB)', math.nan):,.0f} MB"]
    cost.append(f"{values[BITS]:.4g}" if BITS in values else "")
    said = ", ".join(cost[:2] + [f"{c} bits per weight and step" for c in cost[2:] if c])
    lines += [f"{said}; {took.get('processor', '?')}. [Record](reproduction/{name}.json).", ""]
    if (note := folder / f"{name}.md").exists():
        lines += [note.read_text(encoding="utf-8").strip(), ""]
    pictures = sorted({*folder.glob(f"{name}.png"), *folder.glob(f"{name}-*.png")})
    lines += [f"![{title.strip()}](reproduction/{p.name})\n" for p in pictures]
    compared = [r for _, r in rows if r is not None]
    largest = f"{100 * max(compared):.2g} %" if compared else ""
    return "\n".join(lines), f"| {link} | {len(compared)} | {largest} | {' | '.join(cost)} |"


def page(folder=RECORDS):
    overview = ["| example | numbers compared | largest difference | time | memory | bits |"]
    overview += ["|---|---|---|---|---|---|"]
    parts = []
    for title, examples in sections().items():
        parts.append(f"## {title}\n")
        for example in examples:
            text, line = section(example, folder)
            parts.append(text)
            overview.append(line)
    return HEAD + "\n".join([*overview, "", *parts]).rstrip() + "\n"


def run(example):
    """Run an example at full size, or go on with it; returns whether it came to its end."""
    name, options = example.stem, OPTIONS.get(example.stem, ())
    WORK.mkdir(parents=True, exist_ok=True)
    record = WORK / f"{name}.json"
    done = record.exists() and "finished" in json.loads(record.read_text(encoding="utf-8"))
    if not done:
        print(f"\n{name} {' '.join(options)}", flush=True)
        full = [sys.executable, str(example), *options, "--folder", str(WORK)]
        done = subprocess.run(full, check=False).returncode == 0
    if done:
        RECORDS.mkdir(exist_ok=True)
        for made in [record, *WORK.glob(f"{name}.png"), *WORK.glob(f"{name}-*.png")]:
            shutil.copy(made, RECORDS)
    return done


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--run", nargs="*", metavar="NAME", help="run these examples, or all")
    asked = parser.parse_args(arguments).run
    names = {example.stem: example for group in sections().values() for example in group}
    if unknown := {*(asked or ())} - names.keys():
        parser.error(f"no example {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    failed = [] if asked is None else [n for n in asked or names if not run(names[n])]
    PAGE.write_text(page(), encoding="utf-8")
    if failed:
        sys.exit(
            f"did not come to their end: {', '.join(failed)}; `make figures` goes on with them"
        )


if __name__ == "__main__":
    main()
