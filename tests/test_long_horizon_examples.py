"""The experiments of examples/long_horizon run at their smallest sizes, and are gone on with."""

import numpy as np
import optree
import pytest
import running
from running import run

import revgrad as rg

pytest.importorskip("tyro", reason="the examples need `pip install revgrad[examples]`")
examples_can_be_imported = running.importable("long_horizon")


def test_gradients_degrade_and_sharing_helps(tmp_path):
    found, _ = run("gradient_degradation", tmp_path, repeats=4)
    found = found[0.05]
    kinds = found["batches"]  # a mean of 20 fluctuates less
    assert np.mean(kinds["20"]["std"]) / 20 < 0.7 * np.mean(kinds["1"]["std"])
    for kinds in found.values():  # what is shared is the sum of what is not
        total = np.sum(kinds["1"]["mean"])
        assert np.sum(kinds["20"]["mean"]) == pytest.approx(total, rel=1e-9)


def test_schedules_from_zero(tmp_path):
    found, _ = run("schedules_from_zero", tmp_path)
    learned = [row["test"] for kind, row in found.items() if kind != "functional"]
    assert min(learned) > 50  # after three outer steps from 0
    assert found["functional"]["rates"][0] > 0
    assert np.ptp(found["shared"]["rates"][:4]) == 0


def test_table_1(tmp_path):
    found, values = run("learned_from_zero", tmp_path, seeds=1, outer=4)
    rows = {"hand", "random", "greedy", "learned", "best", "tried", "back", "both"}
    assert rows == set(found)
    assert {*values["tried, seed 0"]["candidates"]} == {0, 1}  # not the last two, which paid for it
    assert np.shape(values["both, seed 0"]["valid"]) == (2, 3)
    outer = values["learned, seed 0"]["outer"]
    assert len(outer) == 4 and outer[0]["hyper"]["rate"] == [0] * 7
    assert outer[0]["gradient"]["momentum"] == [0] and min(outer[0]["gradient"]["rate"]) < 0
    assert outer[1]["value"] < outer[0]["value"]
    seen = [step["value"] for step in outer]
    lost = any(seen[k] > min(seen[:k]) + 1 for k in range(1, 4))  # after which the two go apart
    assert (values["back, seed 0"]["hyper"] != values["learned, seed 0"]["hyper"]) == lost
    assert not list(tmp_path.glob("*.search"))


def test_values_are_clamped(tmp_path):
    _, values = run("learned_from_zero", tmp_path, seeds=1, outer=3, clamped=True)
    hyper = values["learned, seed 0"]["hyper"]
    assert min(x for xs in hyper.values() for x in xs) >= 0 and max(hyper["rate"]) > 0
    assert max(hyper["momentum"]) <= 1 and max(hyper["decay"]) <= 5e-3


def test_bayesian_search(tmp_path):
    found, values = run("bayesian_search", tmp_path, seeds=1, runs=6)
    assert {*found} == {f"{k}, {r}" for k in ("random", "bayes") for r in ("full", "twentieth")}
    widest = lambda row: max(abs(x) for d in values[f"{row}, seed 0"]["draws"] for x in d["rate"])
    assert widest("random, full") > 0.5 and widest("bayes, twentieth") <= 0.05


def test_svhn_is_read_from_its_files(tmp_path, monkeypatch):
    from images import load
    from scipy.io import savemat

    rng = np.random.default_rng(0)
    written = {}
    for part, count in (("train", 6), ("test", 4)):
        x = rng.integers(0, 256, (32, 32, 3, count), np.uint8)  # as the official files have them
        y = rng.integers(1, 11, (count, 1)).astype(np.uint8)
        y[0] = 10  # a nought
        written[part] = x, y
        (tmp_path / "svhn").mkdir(exist_ok=True)
        savemat(tmp_path / "svhn" / f"{part}_32x32.mat", {"X": x, "y": y}, do_compression=True)
    monkeypatch.setenv("REVGRAD_DATA", str(tmp_path))
    found = load("svhn", 5, 4)
    for (x, y), (images, labels), count in zip(found, written.values(), (5, 4), strict=True):
        assert x.shape == (count, 32, 32, 3) and x.dtype == np.float32
        assert y.tolist() == [k % 10 for k in labels[:count, 0].tolist()] and y[0] == 0
        back = x * np.float32([0.1980, 0.2010, 0.1970]) + np.float32([0.4377, 0.4438, 0.4728])
        np.testing.assert_allclose(
            255 * back, np.moveaxis(images[..., :count], -1, 0), rtol=0, atol=1e-3
        )
    monkeypatch.setenv("REVGRAD_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match=r"svhn/train_32x32.mat"):
        load("svhn", 5, 4)


def test_greedy_slopes_are_those_of_the_next_loss():
    from greed import greedy_slopes
    from images import load
    from nets import Mlp
    from task import Task

    task = Task(Mlp(), *load("noise", 200, 50), steps=4, batch=20, dtype=np.float64)
    rates = np.full(4, 0.05)
    found = greedy_slopes(task, rates, 0, np.inf)
    train, valid = task.split(0)
    for t in range(4):
        loss = lambda rate, t=t: task.net.loss(
            rg.train(
                task.net.loss, task.net.params(0, np.float64),
                rg.SGD(rg.per_step(np.concatenate([rates[:t], [rate]]))),
                task.batches(train, 0), steps=t + 1, adjoint=rg.Stored(),
            ), None, valid,
        )  # fmt: skip
        ahead, behind = loss(0.05 + 1e-5), loss(0.05 - 1e-5)
        assert found[t] == pytest.approx((ahead - behind) / 2e-5, rel=1e-5)


def test_a_wide_residual_network_has_a_hypergradient():
    from nets import WideResNet
    from task import Task

    rng = np.random.default_rng(0)
    assert sum(map(np.size, optree.tree_leaves(WideResNet().params(0)))) == 175_066
    data = rng.standard_normal((60, 8, 8, 3)).astype(np.float32), rng.integers(0, 10, 60)
    task = Task(WideResNet((4, 4, 4, 8), 1), data, data, 3, 10, augment=True, dtype=np.float64)
    hyper = {"rate": np.array([0.1, 0.05, 0.02]), "momentum": np.array([0.5]), "decay": np.zeros(1)}
    both = [
        rg.grad(lambda h, a=a: task.hyperloss(h, 0, a)[0])(hyper)
        for a in (rg.Forward(), rg.Stored())
    ]
    for k in hyper:
        np.testing.assert_allclose(both[0][k], both[1][k], rtol=1e-9)
