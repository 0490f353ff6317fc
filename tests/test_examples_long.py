"""The long examples run at a quick size, and at full size pass through the authors' numbers."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

import revgrad as rg

pytest.importorskip("tyro", reason="the examples need `pip install revgrad[examples]`")
EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(autouse=True)
def examples_can_be_imported(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))


def load(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_quick(name, folder, **settings):
    example = load(name)
    found = example.main(example.Settings(folder=folder, quick=True, **settings))
    record = json.loads((folder / f"{name}.json").read_text())
    assert "peak memory (MB)" in record["finished"]
    assert (folder / f"{name}.png").stat().st_size > 10_000
    return found


def test_chaos_grows_before_the_slope_is_useless(tmp_path):
    points = run_quick("chaos", tmp_path, data="digits")
    smooth, wild = points[:3], points[3:]
    apart = [abs(p["slope"] / p["difference"] - 1) for p in points]
    assert max(apart[:3]) < 1e-3
    assert min(apart[3:]) > max(apart[:3])
    assert min(p["chaos"] for p in wild) > max(p["chaos"] for p in smooth)


@pytest.mark.parametrize("k", [0, 375])
def test_chaos_passes_through_the_authors_numbers(k, mnist_dir):
    example = load("chaos")
    found = example.Problem(example.Settings()).point(example.GRID[k])
    theirs = {key: number for number, key in example.PAPER.values()}
    assert found["loss"] == pytest.approx(theirs[f"{k}/loss"], abs=6e-8)  # the digits there are
    assert found["slope"] == pytest.approx(theirs[f"{k}/slope"], abs=6e-8)
    assert found["difference"] == pytest.approx(found["slope"], rel=1e-4)


@pytest.fixture
def omniglot_file():
    from revgrad import data

    try:
        return data.find("omniglot/images_background_small1.zip")
    except FileNotFoundError as error:
        pytest.skip(f"Omniglot is absent: {error}")


def test_omniglot_is_shared_and_learned(tmp_path):
    found = run_quick("omniglot_multitask", tmp_path, data="digits")
    assert set(found) == {"separate", "tied", "learned"}
    outer = json.loads((tmp_path / "omniglot_multitask.json").read_text())["values"]["outer"]
    assert outer["exact"]
    assert outer["values"][-1] < outer["values"][0]


def test_omniglot_turns_and_splits_as_the_paper_does(omniglot_file):
    example = load("omniglot_multitask")
    tasks = example.Problem(example.Settings()).tasks
    assert len(tasks) == 10
    for upright, turned in zip(tasks.drawings[:5], tasks.drawings[5:], strict=True):
        assert np.array_equal(turned, np.rot90(upright, -1, axes=(2, 3)))
    assert tasks.labels[:5] == tasks.labels[5:]
    x, targets = tasks.batch(np.arange(10))
    assert x.shape == (10, 400, 784)
    assert targets.sum(axis=(1, 2)) == pytest.approx(1)
    assert [len(a) for a in tasks.drawings[:5]] == [24, 22, 24, 40, 26]


def test_the_recurrent_network_returns_and_learns(tmp_path):
    found = run_quick("reversible_rnn", tmp_path, data="self")
    assert found["equal to the bit"]
    assert found["reversible"]["exact"]
    assert found["reversible"]["MB kept"] < 0.1 * found["stored"]["MB kept"]
    assert found["learning"][-1] < found["learning"][0] - 0.3


def test_preprocessing_and_weights_are_learned(tmp_path):
    found = run_quick("learn_preprocessing", tmp_path, data="digits")
    test = found["test"]
    assert test["all"] < min(test["weights"], test["preprocessing"])
    assert max(test["weights"], test["preprocessing"]) < test["nothing"]
    assert found["area under ROC"] > 0.9


def test_hypergradient_of_preprocessing_agrees_with_a_difference_quotient():
    example = load("learn_preprocessing")
    problem = example.Problem(
        example.Settings(data="digits", examples=300, held_out=300, steps=10, batch=100)
    )
    problem.params = {k: x.astype(np.float64) for k, x in problem.params.items()}
    names = example.PARTS["all"]
    rng = np.random.default_rng(0)
    hyper = {
        k: problem.start[k] + 0.1 * rng.standard_normal(np.shape(problem.start[k])) for k in names
    }
    direction = {k: rng.standard_normal(np.shape(x)) for k, x in hyper.items()}
    found = rg.grad(problem.hyperloss)(hyper)
    slope = sum(np.sum(x * direction[k]) for k, x in found.items())
    f = problem.hyperloss
    ahead, behind = (f({k: hyper[k] + e * direction[k] for k in names}) for e in (1e-5, -1e-5))
    assert slope == pytest.approx((ahead - behind) / 2e-5, rel=1e-5)


def test_a_learned_start_helps_on_new_waves(tmp_path):
    found = run_quick("learn_initialisation", tmp_path)
    assert found["exact"]
    assert found["test"]["learned"] < 0.9 * found["test"]["random"]


def test_hypergradient_of_the_start_agrees_with_a_difference_quotient():
    example = load("learn_initialisation")
    problem = example.Problem(example.Settings(steps=5))
    rng = np.random.default_rng(0)
    direction = [tuple(rng.standard_normal(x.shape) for x in layer) for layer in problem.start]
    moved = lambda e: [
        tuple(x + e * d for x, d in zip(*pair, strict=True))
        for pair in zip(problem.start, direction, strict=True)
    ]
    found = rg.grad(problem.error)(problem.start, 1, 3)
    pairs = zip(found, direction, strict=True)
    slope = sum(np.sum(x * d) for one, other in pairs for x, d in zip(one, other, strict=True))
    ahead, behind = (problem.error(moved(e), 1, 3) for e in (1e-6, -1e-6))
    assert slope == pytest.approx((ahead - behind) / 2e-6, rel=1e-5)


def test_a_mass_matrix_is_learned(tmp_path):
    run_quick("hmc_step_sizes", tmp_path)
    example = load("hmc_step_sizes")
    problem = example.Problem(example.Settings(dimensions=2, steps=60, chains=4))
    hyper = {"log size": np.log(0.05), "root": np.eye(2) + 0.1}
    found = rg.grad(problem.error)(hyper, 0)
    assert problem.report.returned_exactly
    for name, entry in (("log size", ()), ("root", (0, 1))):
        step = np.zeros(np.shape(hyper[name]))
        step[entry] = 1e-5
        ahead, behind = (problem.error(hyper | {name: hyper[name] + e * step}, 0) for e in (1, -1))
        assert found[name][entry] == pytest.approx((ahead - behind) / 2e-5, rel=1e-5)
