"""Figures 4c and 4d, reduced: towers over base step sizes, on a small ResNet and a small LSTM.

    python examples/towers/base_rates_deep.py [--quick] [--full] [--folder docs/reproduction]

Heights 0 (plain) to 3. 4c: SGD with momentum trains a ResNet on CIFAR-10; 4d: Adam trains an LSTM
on War and Peace. Above a base step size a they have [100 a, a, a / 100] up to 1e-4, and [a / 1e3,
a / 1e4, 1e-8] from 1e-3 on. The paper does not say of what kind the upper levels are: SGD, as in
its figures 2 and 3; on the LSTM, Adam too. What diverges counts as guessing. Networks are small and
steps few; --full has the paper's sizes, for a GPU.

Figure 4e (ResNet-152 with ImageNet's weights, tuned on Caltech-256) is out of reach: neither the
weights nor the images come with this project, and an epoch takes a CPU core more than a day.

Source: Chandra et al. 2022, figure 4. Its curves have no table. The claim: the more levels, the
more base step sizes end well; and far too high a one diverges all the same.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import tyro
from paper import adam, levels, sgd
from pictures import by_height, figure
from small_lstm import Problem as Text
from small_resnet import Problem as Images
from small_resnet import averaged
from tqdm import tqdm

import revgrad as rg
from revgrad.records import Record

HEIGHTS, PAPER = range(4), {}  # curves without numbers


@dataclass
class Settings:
    folder: Path = Path(".")  # where base_rates_deep.json and .png go
    quick: bool = False  # two step sizes, few steps, noise for images and text
    full: bool = False  # ResNet-20, 200 epochs; layers of 128, 50,000 steps; all step sizes
    images: int = 4_000
    image_steps: int = 48
    text_steps: int = 150


def resnet_tower(a, height):
    return averaged(rg.HeavyBall(a, 0.9, weight_decay=1e-4), levels(a, height))


def lstm_tower(a, height, kind):
    below = adam(a, levels(a, height, kind))
    options = {"tuned_by": below.tuned_by, "tuned": below.tuned, "transforms": below.transforms}
    return rg.ClipByGlobalNorm(below.untuned, 5.0, **(options if height else {}))


def error_of(problem, made, steps, save=None):
    """Test error in percent, 90 where training diverged."""
    try:
        trained, _, state = problem.fit(made, steps, save)
    except rg.NotFinite:
        return 90.0
    return 100.0 - problem.test(trained, state)["accuracy"]


def perplexity_of(problem, made, steps, save=None):
    """Test perplexity, that of guessing where training diverged."""
    try:
        return problem.perplexity(problem.fit(made, steps, save=save)[0])
    except rg.NotFinite:
        return float(problem.kinds)


def panels_of(settings):
    """Title -> (what measures, problem, steps, tower of a rate and a height, rates)."""
    decades = lambda low, high: [float(f"1e{k}") for k in range(low, high + 1)]
    if settings.quick:
        images, text, steps = Images.of_noise(), Text(quick=True, hidden=8, length=10), (3, 20)
        rates = [[1e-3, 1e-1]] * 2
    elif settings.full:
        images, text = Images.cifar10(50_000, 10_000, 16, 3), Text(quick=False, hidden=128)
        steps, rates = (200 * 390, 50_000), [decades(-8, 1)] * 2
    else:
        images, text = Images.cifar10(settings.images, 2_000), Text(quick=False, hidden=64)
        steps = settings.image_steps, settings.text_steps
        rates = decades(-4, 0), decades(-5, -1)
    lstm = lambda kind: partial(lstm_tower, kind=kind)
    return {
        "4c, ResNet, momentum / sgd": (error_of, images, steps[0], resnet_tower, rates[0]),
        "4d, LSTM, adam / sgd": (perplexity_of, text, steps[1], lstm(sgd), rates[1]),
        "4d, LSTM, adam / adam": (perplexity_of, text, steps[1], lstm(adam), rates[1]),
    }


def main(settings=None):
    settings = settings or Settings()
    record = Record(settings.folder / "base_rates_deep.json", settings)
    panels, found, save = panels_of(settings), {}, settings.folder / "base_rates_deep.run"
    jobs = [(name, h, a) for name, (*_, rates) in panels.items() for h in HEIGHTS for a in rates]
    for name, h, a in tqdm(jobs, desc="base rates"):
        measure, problem, steps, tower, _ = panels[name]
        kind = name if h else name.rpartition(" / ")[0]  # plain ones are the same
        job = partial(measure, problem, tower(a, h), steps, save)
        rows = found.setdefault(name, {}).setdefault(str(h), [])
        rows.append(record.once(f"{kind}, height {h}, base rate {a:g}", job))
    for name, rows in found.items():
        record[name] = {"base rates": panels[name][-1]} | rows
    limits = {name: 1.25 * min(map(min, rows.values())) for name, rows in found.items()}
    record["base rates within a quarter of the best"] = good = {
        name: {h: sum(x < limits[name] for x in values) for h, values in rows.items()}
        for name, rows in found.items()
    }
    record.finish()
    with figure(settings.folder / "base_rates_deep.png", 3, size=(13, 3.6)) as drawn:
        for panel, (name, rows) in zip(drawn, found.items(), strict=True):
            by_height(panel, panels[name][-1], rows, title=name)
            panel.set_ylabel("test error (%)" if "ResNet" in name else "test perplexity")
        for line in (x for panel in drawn[1:] for x in panel.lines):
            line.set_label(None)  # one legend is enough
    return {"found": found, "good": good}


if __name__ == "__main__":
    main(tyro.cli(Settings))
