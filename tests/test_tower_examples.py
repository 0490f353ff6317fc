"""The experiments of examples/towers run at their smallest sizes, and are gone on with."""

import importlib

import numpy as np
import optree
import pytest
import running
from running import run

import revgrad as rg

pytest.importorskip("tyro", reason="the examples need `pip install revgrad[examples]`")
examples_can_be_imported = running.importable("towers")


def test_table_1(tmp_path, mnist_dir):
    found, _ = run("table1", tmp_path, seeds=1)
    assert [len(rows) for rows in found.values()] == [5, 5, 3, 5]
    for below in ("SGD", "Adam"):  # after 8 steps what is tuned is ahead of what is not
        table = found["1a" if below == "SGD" else "1b"]
        assert min(row["error"] for row in table.values()) < table[below]["error"]
    assert found["1b"]["Adam by SGD(1e-5)"]["learning_rate"] > 0.002


def test_base_rates(tmp_path, mnist_dir):
    found, _ = run("base_rates", tmp_path)
    lowest = [found["errors"]["4a"][str(h)][0] for h in range(4)]
    assert lowest[0] > lowest[1] > lowest[2] - 5  # from a rate that is too low
    assert all(rows[-1] > 80 for rows in found["errors"]["4a"].values())  # and far too high


def test_level_cost(tmp_path, mnist_dir):
    found, _ = run("level_cost", tmp_path)
    assert len(found["sgd"]["added (%)"]) == 3 and found["sgd"]["added (%)"][0] == 0


def test_resnet(tmp_path):
    found, values = run("resnet", tmp_path)
    name = "rate 0.1, momentum 0.9"
    assert [*found["rows"]] == [name, f"{name}, tuned", "by hand"]
    tuned = values[f"{name}, tuned"]
    assert tuned["learning_rate"] != 0.1 and tuned["momentum"] != 0.9
    losses = values["by hand"]["loss of epochs"]  # a tenth of the rate is for the second half
    assert losses[:2] == values[name]["loss of epochs"][:2]


def test_characters(tmp_path):
    found, values = run("characters", tmp_path)
    assert all(1 < x < 5 for x in found.values())  # of 4 characters
    way = values["0.01, tuned, seed 0"]["way"]
    assert len(way["step"]) == 30 and way["learning_rate"][0] == 0.01 != way["learning_rate"][-1]
    more, values = run("characters", tmp_path, seeds=2)  # goes on from the record of one
    assert values["perplexity of each seed"]["0.01, tuned"][0] == found["0.01, tuned"]
    assert more["0.01, tuned"] != found["0.01, tuned"]


def test_base_rates_deep(tmp_path):
    found, values = run("base_rates_deep", tmp_path)
    assert [len(rows) for rows in found["found"].values()] == [4, 4, 4]
    sgd, adam = (found["found"][f"4d, LSTM, adam / {kind}"] for kind in ("sgd", "adam"))
    assert sgd["0"] == adam["0"] and sgd["1"] != adam["1"]  # the plain ones are the same runs
    assert values["4d, LSTM, adam, height 0, base rate 0.1"] == sgd["0"][1]


def test_a_tower_that_diverges_counts_as_guessing():
    deep = importlib.import_module("base_rates_deep")
    problem = deep.Text(quick=True, hidden=8, length=10)
    assert deep.perplexity_of(problem, deep.lstm_tower(1e30, 1, deep.sgd), 20) == problem.kinds
    images = deep.Images.of_noise()
    assert deep.error_of(images, deep.resnet_tower(1e30, 1), 5) == 90.0


def test_slopes_of_the_lstm_are_difference_quotients():
    """A tower over clipped Adam on a recurrent network: the rate's slope, by moving the rate."""
    lstm = importlib.import_module("small_lstm")
    characters = importlib.import_module("characters")
    numbers, kinds = lstm.text(quick=True)
    batches = [numbers[k : k + 88].reshape(8, 11) for k in range(0, 352, 88)]
    start = lstm.params_of(0, kinds, 4, 4)
    params = optree.tree_map(lambda x: x.astype(np.float64), start)

    def losses(rate):
        seen = []
        made = rg.ClipByGlobalNorm(rg.Adam(rate, initial_scale=1e-8), 5.0)
        keep = lambda t, m: seen.append(m["loss"])
        rg.fit(lstm.loss, params, made, batches[:2], callback=keep)
        return seen[1]

    made = characters.optimizer(0.01, tuned=True)
    _, paths = rg.fit(lstm.loss, params, made, batches[:2])
    slope = (losses(0.01 + 1e-6) - losses(0.01 - 1e-6)) / 2e-6
    moved = np.diff(paths["learning_rate"])[0]
    assert moved == pytest.approx(-0.01 * 1e-2 * slope, rel=1e-4)
