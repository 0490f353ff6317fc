"""Run the examples that reproduce published experiments, and write docs/reproduction.md.

    python docs/make_reproduction.py              the page, from the records in docs/reproduction
    python docs/make_reproduction.py --run        all at full size, then the page (`make figures`)
    python docs/make_reproduction.py --run chaos  this one alone

Full-size runs work in build/reproduction. What was killed goes on where it was; what is finished
there is not run again, and its record and pictures are copied to docs/reproduction.

An example is in SECTIONS, and has a table PAPER = {"what": (the paper's number, key), ...}. The key
is that of our number in the record, "a/b/3" for what is nested; the number may be None. The page
takes the docstring's paragraphs, and, if there are such files in docs/reproduction, NAME.md, what
is to be said about differences, and NAME.png and NAME-*.png.
"""

import argparse
import ast
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

# By paper: an example's path in examples/, and what its command line needs for full size.
SECTIONS = {
    "Maclaurin, Duvenaud, Adams 2015: Gradient-based Hyperparameter Optimization through Reversible"
    " Learning": (
        "figure1_two_weights.py",
        "learn_schedules.py --start paper",
        "search_baselines.py",
        "smooth_hypergradients.py",
        "figure6_per_weight_l2.py",
        "penalty_groups.py",
        "learn_training_images.py",
        "omniglot_multitask.py",
        "chaos.py",
        "learn_preprocessing.py",
        "hmc_step_sizes.py",
        "reversible_rnn.py",
        "learn_initialisation.py",
    ),
}

HEAD = """# Reproduction

Published numbers beside ours, made by `make figures` from one example each. Time is of the whole
run, memory the peak of its process, both on the processor named; bits are what is kept to run
training backwards, per weight and step. "Difference" is ours - paper's.

"""
BITS = "bits per weight and step"  # the key of a record, where there is one


def constants(example):
    """(docstring, PAPER or {}) of an example, which is imported only if it has such a table."""
    text = example.read_text(encoding="utf-8")
    docstring = ast.get_docstring(ast.parse(text)) or ""
    if "\nPAPER = " not in text:
        return docstring, {}
    sys.path.insert(0, str(example.parent))  # where its neighbours are
    try:
        return docstring, runpy.run_path(str(example))["PAPER"]
    finally:
        sys.path.remove(str(example.parent))


def looked_up(values, key):
    """What a record has under a key, "a/b/3" for what is nested."""
    if key in values:
        return values[key]
    for part in key.split("/"):
        values = values[int(part) if isinstance(values, list) else part]
    return values


def row(what, paper, ours):
    """(line of a table, the relative difference or None)."""
    if paper is None or isinstance(paper, str):
        return f"| {what} | {paper or '-'} | {_shown(ours)} | |", None
    difference = ours - paper
    relative = abs(difference) / abs(paper) if paper else math.inf
    percent = f" ({100 * difference / abs(paper):+.2g} %)" if paper else ""
    return f"| {what} | {paper:.8g} | {_shown(ours)} | {difference:+.1e}{percent} |", relative


def _shown(x):
    return f"{x:.8g}" if isinstance(x, int | float) else str(x)


def section(command, folder=RECORDS):
    """(Markdown about one example, its line in the overview)."""
    path, *options = command.split()
    example, name = EXAMPLES / path, Path(path).stem
    docstring, paper = constants(example)
    title, *story = (part for part in docstring.split("\n\n") if not part.startswith("    "))
    link = f"[`{path}`](../examples/{path})"
    lines = [f"### {title.strip().rstrip('.')}", "", f"{link} {' '.join(options)}".strip(), ""]
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
    for title, commands in SECTIONS.items():
        parts.append(f"## {title}\n")
        for command in commands:
            if (EXAMPLES / command.split()[0]).exists():
                text, line = section(command, folder)
                parts.append(text)
                overview.append(line)
    return HEAD + "\n".join([*overview, "", *parts]).rstrip() + "\n"


def run(command):
    """Run an example at full size, or go on with it; returns whether it came to its end."""
    path, *options = command.split()
    name = Path(path).stem
    WORK.mkdir(parents=True, exist_ok=True)
    record = WORK / f"{name}.json"
    done = record.exists() and "finished" in json.loads(record.read_text(encoding="utf-8"))
    if not done:
        print(f"\n{path} {' '.join(options)}", flush=True)
        full = [sys.executable, str(EXAMPLES / path), *options, "--folder", str(WORK)]
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
    commands = [
        c for group in SECTIONS.values() for c in group if (EXAMPLES / c.split()[0]).exists()
    ]
    names = {Path(c.split()[0]).stem: c for c in commands}
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
