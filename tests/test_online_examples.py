"""The experiments of examples/online run at their smallest sizes, and are gone on with."""

import importlib

import numpy as np
import pytest
import running

pytest.importorskip("tyro", reason="the examples need `pip install revgrad[examples]`")
examples_can_be_imported = running.importable("online")


def run(name, folder, **settings):
    return running.run(name, folder, **{"data": "digits"} | settings)


def test_race(tmp_path):
    found, values = run("race", tmp_path)
    assert set(found["random"]) == set(found["Bayesian"]) and len(found["random"]) == 5
    assert all(row["at"]["decay"] > 0 for name, row in values.items() if ", random" in name)


def test_how_a_race_is_counted():
    race = importlib.import_module("race_trials")
    rows = [
        {"test loss": [3.0, 2.0], "seconds": 10.0},
        {"test loss": [0.5, 9.0], "seconds": 8.0},
        {"test loss": [3.0, 1.0], "seconds": 6.0},
    ]
    assert [race.arrival(r, 1.0) for r in rows] == [None, 1, 2]
    pool = race.of_pool(rows, 1.0)
    assert pool["trials"] == 4 / 3  # the mean place of the first of two good ones among three
    assert pool["minutes"] * 60 == pytest.approx(10 / 3 + 5)
    assert race.of_searches([rows[:2], rows[2:]], 1.0)["minutes"] * 60 == pytest.approx(10)


def test_starts(tmp_path):
    found, _ = run("starts", tmp_path)
    assert found["fixed"][0] != found["online"][0]


def test_full_length(tmp_path):
    found, values = run("full_length", tmp_path)
    assert values["online"]["rate"] != 0.001 and len(values["online"]["test loss"]) == 2
    assert values["early stopping"]["fixed"] >= 0.0 < found["fixed"]["last"]
    assert not (tmp_path / "full_length.safetensors").exists()


def test_layer_rates(tmp_path):
    found, values = run("layer_rates", tmp_path)
    assert len(found["ends"]["1e-05"]) == 4 and min(found["spread"]["5e-06"]) > 2
    assert values["meta 1e-05, from 0.01"]["learning_rate[0]"][-1] != 0.01


def test_convolutions(tmp_path):
    found, values = run("convolutions", tmp_path)
    assert len({tuple(row) for row in found["4B"].values()}) == 3
    paths = values["by layer from 0.1"]["paths"]
    assert paths["learning_rate[0]"][-1] != paths["learning_rate[3]"][-1]
    assert values["learning"]["paths"]["learning_rate"][0] == 0.3


def test_outer_gradient(tmp_path):
    found, values = run("outer_gradient", tmp_path)
    assert len(found) == 5
    names = ("training", "validation, batches of 100")
    paths = [values[name][0]["paths"]["learning_rate"] for name in names]
    assert paths[0] != paths[1] and paths[0][-1] != 0.1


def test_influence_norms(tmp_path):
    found, values = run("influence_norms", tmp_path)
    assert not found["blew up"] and 0 < values["lowest norm"] <= values["highest norm"]


def test_lifelong(tmp_path):
    found, _ = run("lifelong", tmp_path)
    assert found["online, reset 100"] < found["fixed at 0.1"]  # from which it starts


def test_a_rotation_by_a_quarter_is_one():
    rotation = importlib.import_module("lifelong").rotation(5, 90)
    image = np.random.default_rng(0).random((5, 5), np.float32)
    turned = (image.ravel() @ rotation).reshape(5, 5)
    assert min(np.max(np.abs(turned - np.rot90(image, k))) for k in (1, 3)) < 1e-5


def test_recovery(tmp_path):
    found, _ = run("recovery", tmp_path)
    assert found["resets"]["1"][0] != found["resets"]["never"][0]


def test_groups(tmp_path):
    found, values = run("groups", tmp_path)
    assert len(found["loss"]) == len(found["time"]) == 9
    assert found["short"]["Adam inside"] != found["short"]["Adam, fixed"]  # it learned
    one, two = (values[f"{k}, seed 0"]["test loss"] for k in ("1, shared", "2, exact"))
    assert one != two and np.allclose(one, two, rtol=1e-3)  # the same start, rates of their own
