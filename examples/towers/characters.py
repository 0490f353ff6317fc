"""Figure 3 and 4d, reduced: an LSTM reads War and Peace while its Adam learns rate, b1 and b2.

    python examples/towers/characters.py [--quick] [--full] [--folder docs/reproduction]

From first rates of 1e-4, 2e-3 and 1e-2, plain and tuned by an SGD with a step of its own for each:
rate / 100 for the rate, 1e-4 and 2e-4 for b1 and b2 (on the raw numbers; beta = (tanh r + 1) / 2).
The paper takes 50,000 steps with 2 layers of 128, an hour on a GPU; here it is --steps with layers
of 64, so perplexities are higher, and their order is what is compared. --full: the paper's sizes.

Source: Chandra et al. 2022, figure 3; sequences of 50, batch 50, embedding 64, clipping at 5 as in
torch-rnn, to which the paper refers.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from paper import RATE
from pictures import figure, in_pairs
from small_lstm import loss, params_of, text
from tqdm import tqdm

import revgrad as rg
from revgrad.records import Record

RATES, BATCH, LENGTH = (1e-4, 2e-3, 1e-2), 50, 50
PAPER = {
    f"perplexity from rate {a:g}{how}": (x, f"perplexity/{a:g}{how}")
    for a, tuned, plain in ((1e-4, 6.51, 8.71), (2e-3, 5.41, 5.27), (1e-2, 5.45, 5.77))
    for how, x in ((", tuned", tuned), (", plain", plain))
}


@dataclass
class Settings:
    folder: Path = Path(".")  # where characters.json and characters.png go
    quick: bool = False  # a few steps of a tiny network on a made-up text, for tests
    full: bool = False  # layers of 128 and 50,000 steps
    steps: int = 3_000
    hidden: int = 64


def optimizer(rate, tuned):
    below = rg.Adam(rate, initial_scale=1e-8)
    if not tuned:
        return rg.ClipByGlobalNorm(below, 5.0)
    steps = {RATE: rate * 1e-2, "b1": 1e-4, "b2": 2e-4}
    how = {RATE: "free", "b1": "half_tanh", "b2": "half_tanh"}
    return rg.ClipByGlobalNorm(below, 5.0, tuned_by=rg.SGD(steps), tuned=tuple(how), transforms=how)


def run(parts, params, made, steps):
    """Perplexity on the test text, and what was learned; infinite where training diverged."""
    batches = rg.minibatches(parts["train"], BATCH, seed=0)
    try:
        trained, paths = rg.fit(loss, params, made, batches, steps=steps)
    except rg.NotFinite as error:
        return {"perplexity": 1e9, "diverged at step": error.step}
    test = np.array_split(parts["test"], max(1, len(parts["test"]) // 200))
    return {
        "perplexity": float(np.exp(np.mean([loss(trained, None, x) for x in test])))
    } | paths.last


def main(settings=None):
    settings = settings or Settings()
    record = Record(settings.folder / "characters.json", settings)
    numbers, kinds = text(settings.quick)
    length, steps, hidden = LENGTH, settings.steps, settings.hidden
    if settings.quick:
        length, steps, hidden = 10, 30, 8
    if settings.full:
        steps, hidden = 50_000, 128
    rows = len(numbers) // (length + 1)
    sequences = numbers[: rows * (length + 1)].reshape(rows, length + 1)
    tenth = rows // 10  # the last for the test, the one before for validation, as torch-rnn has it
    parts = {"train": sequences[: -2 * tenth], "test": sequences[-tenth:][:2_000]}
    found = {}
    for rate, tuned in tqdm([(a, b) for a in RATES for b in (False, True)], desc="LSTM"):
        name = f"{rate:g}, {'tuned' if tuned else 'plain'}"
        made = optimizer(rate, tuned)
        start = params_of(0, kinds, hidden)
        row = record.once(name, lambda made=made, start=start: run(parts, start, made, steps))
        found[name] = row["perplexity"]
    record["perplexity"] = found
    record.finish()
    with figure(settings.folder / "characters.png") as (panel,):
        plain, tuned = ([found[f"{a:g}, {how}"] for a in RATES] for how in ("plain", "tuned"))
        words = {"xlabel": "first learning rate", "ylabel": "test perplexity"}
        in_pairs(panel, RATES, plain, tuned, title="figure 3, reduced", **words)
    return found


if __name__ == "__main__":
    main(tyro.cli(Settings))
