"""The figures of the 2015 paper: at published numbers where that is quick, and quick runs."""

import importlib
import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import revgrad as rg

pytest.importorskip("tyro", reason="the examples need `pip install revgrad[examples]`")
EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(autouse=True)
def examples_can_be_imported(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    yield
    for name in [k for k, m in sys.modules.items() if _is_example(m)]:
        del sys.modules[name]


def _is_example(module):
    return (getattr(module, "__file__", None) or "").startswith(str(EXAMPLES))


def values_in(record):
    return json.loads(record.read_text(encoding="utf-8"))["values"]


def beside_the_paper(example, record):
    """(the paper's number, ours) by name."""
    from_record = {}
    for what, (number, key) in example.PAPER.items():
        found = record
        for part in key.split("/"):
            found = found[int(part) if isinstance(found, list) else part]
        from_record[what] = number, found
    return from_record


# Figure 1.


def test_figure_1(tmp_path):
    import figure1_two_weights as figure

    found = figure.main(figure.Settings(tmp_path))
    np.testing.assert_allclose(found, figure_1_by_hand(figure), rtol=1e-8)
    record = rg.records.Record(tmp_path / "figure1_two_weights.json", figure.Settings(tmp_path))
    for what, (paper, ours) in beside_the_paper(figure, record).items():
        digits = len(f"{paper:.8g}".partition(".")[2])
        assert abs(ours - paper) <= 0.51 * 10.0**-digits, what
    assert record["losses one step earlier"][2] < record["final losses"][2]  # it goes past
    assert (tmp_path / "figure1_two_weights.png").stat().st_size > 10_000


def figure_1_by_hand(figure):
    """The authors' recursions in plain NumPy: only the scaling is by n/d."""
    gradient = rg.grad(figure.surface)
    log_rate, logit, velocities, losses = np.full(50, -4.5), np.full(50, np.log(99)), [0, 0], []
    for _ in range(3):
        rates, momenta = np.exp(log_rate), 1 / (1 + np.exp(-logit))
        w, v, trail = figure.START, np.zeros(2), []
        for rate, m in zip(rates, momenta, strict=True):
            trail.append((w, v, g := gradient(w)))
            v = (np.trunc(m * 2**16) + 1) / 2**16 * v - (1 - m) * g
            w = w + rate * v
        losses.append(figure.surface(w))
        ends = [v for _, v, _ in trail[1:]] + [v]
        dw, dv, slopes = gradient(w), np.zeros(2), np.zeros((2, 50))
        for t in reversed(range(50)):
            (w, v, g), m = trail[t], momenta[t]
            slopes[0, t] = rates[t] * (dw @ ends[t])
            dv = dv + rates[t] * dw
            slopes[1, t] = m * (1 - m) * (dv @ (v + g))
            dw = dw - rg.hvp(figure.surface, (w,), ((1 - m) * dv,))[1]
            dv = m * dv
        velocities = [0.9 * v - 0.1 * s for v, s in zip(velocities, slopes, strict=True)]
        log_rate, logit = log_rate + 0.01 * velocities[0], logit + 0.01 * velocities[1]
    return losses


# Figures 2 to 5.


def test_first_outer_steps_of_figure_3(mnist_dir):
    import learn_schedules as figure
    from authors import AuthorsAdam

    problem = figure.Problem(figure.Settings())
    start = problem.hyper(*figure.STARTS["paper"])
    found = rg.minimize(problem.hyperloss, start, AuthorsAdam(0.04), until=4, progress=False)
    np.testing.assert_allclose(found.values, [0.5314, 0.4579, 0.3932, 0.3245], atol=2e-3)
    problem.hyperloss(start, 0, problem.loss_on_all)
    curve = np.take(problem.report.watched, [0, 1, 2, 50, 99])
    np.testing.assert_allclose(curve, [2.3019, 2.3001, 2.2977, 1.0076, 0.5343], atol=2e-3)


def test_learn_schedules_quickly(tmp_path):
    import learn_schedules as figure

    values = figure.main(figure.Settings(tmp_path, quick=True, data="digits"))
    assert len(values) == 3 and values[2] < values[0]
    record = values_in(tmp_path / "learn_schedules.json")
    for name, last in (("initial", values[0]), ("final", values[2])):
        assert record["curves"][name][0] > 2 > 1.2 * last
    assert record["bits per weight and step"] > 0


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path[:0] = {paths!r}
from killed import tick_until
tick_until({kill}, lambda: os.kill(os.getpid(), signal.SIGKILL))
import learn_schedules as figure
figure.main(figure.Settings(Path({folder!r}), quick=True, data="digits"))
"""


def test_learn_schedules_ends_with_the_same_numbers_when_killed(tmp_path):
    paths = [str(Path(__file__).parent), str(EXAMPLES)]
    records = []
    for kills in ((), (30, 50)):  # in the first meta-iteration, then, taken up, in the second
        folder = tmp_path / str(len(kills))
        folder.mkdir()
        for kill in (*kills, -1):
            script = KILLED.format(paths=paths, kill=kill, folder=str(folder))
            ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
            assert ended.returncode == (0 if kill < 0 else -signal.SIGKILL), ended.stderr
        assert not (folder / "learn_schedules.safetensors").exists()
        records.append(values_in(folder / "learn_schedules.json"))
    assert records[0] == records[1]


def test_smooth_hypergradients_have_the_same_bits_in_any_number_of_processes(tmp_path):
    import smooth_hypergradients as figure

    settings = figure.Settings(data="digits", seeds=4, steps=20, examples=1_000)
    records = []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        folder.mkdir()
        figure.main(replace(settings, folder=folder, processes=processes))
        records.append(values_in(folder / "smooth_hypergradients.json"))
    assert records[0] == records[1]
    mean = np.mean([figure.hypergradient(figure.Problem(settings), k)[0] for k in range(4)], axis=0)
    np.testing.assert_allclose(mean[:-1].sum(0), list(records[0]["sums"].values()), rtol=1e-12)


# Figures 6 and 7.


def printed_digits(paper, ours):
    """Whether they agree in the digits that the paper's number is known to."""
    return abs(ours - paper) <= 0.51 * 10.0 ** -len(f"{paper:.8g}".partition(".")[2])


def test_first_outer_steps_of_figure_6(mnist_dir, tmp_path):
    import figure6_per_weight_l2 as figure

    curves = figure.main(figure.Settings(tmp_path, outer=6))
    for step in (0, 1, 5):
        for what, paper in zip(("train", "validation", "test"), figure.LOSSES[step], strict=True):
            assert printed_digits(paper, curves[what][step]), (what, step)
    assert curves["test error %"][0] == pytest.approx(15.6)
    assert values_in(tmp_path / "figure6_per_weight_l2.json")["returned exactly"] is True


def test_the_demo_runs_the_published_experiment(monkeypatch, tmp_path):
    import figure6_per_weight_l2 as figure
    import per_weight_l2

    ran = []
    monkeypatch.setattr(figure, "main", ran.append)
    per_weight_l2.main(per_weight_l2.Settings(paper=True, picture=str(tmp_path / "x.png")))
    assert ran == [figure.Settings(tmp_path)]


def test_figure_7(mnist_dir, tmp_path):
    import learn_training_images as figure

    found = figure.main(figure.Settings(tmp_path, variants=("published", "penalty learned")))
    for what, (paper, ours) in beside_the_paper(figure, found).items():
        assert printed_digits(paper, ours), what


def ran_quickly(name, folder):
    """What an example returns at its quick size, with its record and picture looked at."""
    figure = importlib.import_module(name)
    found = figure.main(figure.Settings(folder, quick=True, data="digits"))
    kept = values_in(folder / f"{name}.json")["bits per weight and step"]
    assert kept == pytest.approx(0.152, abs=2e-3)
    assert (folder / f"{name}.png").stat().st_size > 10_000
    return found


def test_figure_6_quickly(tmp_path):
    curves = ran_quickly("figure6_per_weight_l2", tmp_path)
    assert curves["validation"][-1] < curves["validation"][0]


def test_labels_that_are_learned_help(tmp_path):
    found = ran_quickly("learn_training_images", tmp_path)
    assert found["labels learned"]["validation"][-1] < found["by Adam"]["validation"][-1]


def test_more_penalties_fit_the_validation_set_better(tmp_path):
    for kind, rows in ran_quickly("penalty_groups", tmp_path).items():
        assert rows["per weight"][0] < rows["per unit"][0] <= rows["one"][0] + 1e-3, kind


def test_search_baselines_quickly(tmp_path):
    import search_baselines as figure

    settings = figure.Settings(tmp_path, quick=True, data="digits")
    tried = figure.main(settings)
    record = tmp_path / "search_baselines.json"
    before = values_in(record)
    lines = json.loads(record.read_text())
    del lines["finished"], lines["values"]["Bayesian optimisation 15"], lines["values"]["again"]
    record.write_text(json.dumps(lines))
    figure.main(figure.Settings(tmp_path, quick=True, data="digits"))  # the search goes on alike
    assert values_in(record) == before
    assert tried["Bayesian optimisation, 20 runs"][0] < 2.3
    assert tried["1,608 by gradients"][0] < before["1,608 by gradients"][0][0]
