"""The door `fit`: plain training, what it tells, what it refuses, divergence, kill and resume."""

import os
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_every_optimizer import ALL, settings_of
from training import batches_of, bits, distance, hyper_of, loss, params_of

import revgrad as rg
from revgrad.online.paths import ROWS, Paths

INSIDE = {"learning_rate": "exp"}
TOWER = rg.Adam(
    0.05,
    tuned_by=rg.SGD(1e-3, tuned_by=rg.SGD(1e-4), transforms=INSIDE),
    transforms=INSIDE | {"b1": "sigmoid", "b2": "sigmoid"},
)


def fit(optimizer=TOWER, steps=8, kind="float64", **options):
    given = {"hyper": hyper_of(kind), "steps": steps} | options
    return rg.fit(loss, params_of(kind), optimizer, batches_of(8, kind), **given)


@pytest.mark.parametrize("name", ALL)
def test_without_tuned_by_it_is_plain_training(name):
    f, params, optimizer, batches, options = settings_of(ALL[name])
    trained, state = rg.train(
        f, params, optimizer, batches, adjoint=rg.Unrolled(), return_state=True, **options
    )
    fitted, paths, state_too = rg.fit(f, params, optimizer, batches, return_state=True, **options)
    assert distance(fitted, trained) < 1e-12
    assert state_too.pop("t") == state.pop("t") and len(paths) == 0
    for variable in state:
        assert distance(state_too[variable], state[variable]) < 1e-10


def test_it_takes_state_where_a_run_left_off():
    fitted, _, state = rg.fit(
        loss, params_of(), rg.Adam(0.05), batches_of(8)[:3], hyper=hyper_of(), return_state=True
    )
    again, _ = rg.fit(loss, fitted, rg.Adam(0.05), batches_of(8)[3:], hyper=hyper_of(), state=state)
    assert bits(again) == bits(fit(rg.Adam(0.05))[0])


def test_params_and_given_arrays_stay_as_they_were():
    params, before = params_of(), bits(params_of())
    seen = []
    rg.fit(
        loss, params, TOWER, batches_of(8), hyper=hyper_of(),
        watch=lambda t, p: seen.append(p) or 0.0,
    )  # fmt: skip
    assert bits(params) == before == bits(seen[0]) != bits(seen[1])


def test_numbers_come_back_in_their_kind():
    params = {"a": 0.5, "b": np.float64(0.25), "c": np.array(1.0)}
    f = lambda p, h, b: (p["a"] - 1) ** 2 + p["b"] ** 2 + p["c"] ** 2
    trained, _ = rg.fit(f, params, rg.SGD(0.1, tuned_by=rg.SGD(0.01)), [0] * 4)
    assert [type(x) for x in trained.values()] == [float, np.float64, np.ndarray]


def test_what_it_tells():
    report, rows = rg.Report(), []
    _, paths = fit(
        report=report, watch=lambda t, p: float(t), callback=lambda t, m: rows.append((t, m))
    )
    assert report.steps == 8 and report.watched == list(range(8)) and report.weights == 20
    assert [t for t, _ in rows] == list(range(8)) == paths.steps.tolist()
    assert [m["loss"] for _, m in rows] == paths.loss.tolist()
    assert [m["hyper"]["b1"] for _, m in rows] == paths["b1"].tolist()
    assert [*paths] == ["b1", "b2", "learning_rate", "tuned_by.learning_rate"]
    rate = paths["learning_rate"]
    assert rate[0] == pytest.approx(0.05) != rate[-1] == paths.last["learning_rate"]
    with pytest.raises(KeyError, match="there are"):
        paths["momentum"]
    assert "8 rows; last b1 0.9" in repr(paths)


def test_a_callback_may_end_the_run():
    def stop(t, metrics):
        if t == 2:
            raise rg.StopRun

    _, paths, state = fit(callback=stop, return_state=True)
    assert state["t"] == 3 and len(paths.loss) == 3


def test_a_progress_bar(capsys):
    fit(progress=True)
    assert "8/8" in capsys.readouterr().err


def test_no_steps_at_all():
    trained, paths = fit(steps=0)
    assert bits(trained) == bits(params_of()) and len(paths.loss) == 0


def test_a_loss_that_cannot_be_recorded_is_trained_all_the_same():
    def branching(params, hyper, batch):
        value = loss(params, hyper, batch)
        return value if value > 0 else -value

    assert (
        distance(
            rg.fit(branching, params_of(), TOWER, batches_of(8), hyper=hyper_of())[0], fit()[0]
        )
        < 1e-12
    )


def test_an_optimizer_that_cannot_be_recorded_is_run_all_the_same():
    from dataclasses import dataclass
    from typing import Any, ClassVar

    @dataclass(frozen=True, eq=False)
    class Branching(rg.SGD):
        learning_rate: Any
        statements: ClassVar = (
            rg.extend.Add(
                "params",
                lambda g, learning_rate: -learning_rate * g if np.sum(g) < 1e9 else 0.0 * g,
            ),
        )

    tuned = {"tuned": ("learning_rate",), "tuned_by": rg.SGD(1e-3)}
    found, paths = fit(Branching(0.1, **tuned))
    expected, same = fit(rg.SGD(0.1, **tuned))
    assert distance(found, expected) < 1e-12
    np.testing.assert_allclose(paths["learning_rate"], same["learning_rate"], rtol=1e-12)


# What is refused.


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"optimizer": "adam"}, TypeError, "pass one of revgrad's"),
        ({"steps": -1}, ValueError, "steps=-1"),
        ({"state": {"velocity": 0}}, ValueError, "keeps"),
        ({"save_every": 3}, ValueError, "without save="),
        ({"save": "/no/such/folder/run"}, FileNotFoundError, "make it first"),
    ],
)
def test_bad_input_is_refused_at_the_door(change, error, says):
    with pytest.raises(error, match=says):
        fit(**change)


def test_a_traced_value_is_refused():
    for f in (
        lambda x: fit(rg.SGD(x))[0]["out"][0],
        lambda x: fit(rg.SGD(0.1, tuned_by=rg.SGD(x)))[0]["out"][0],
        lambda x: fit(rg.SGD(rg.per_step(x * np.ones(8))))[0]["out"][0],
        lambda x: fit(hyper={"l2": hyper_of()["l2"], "shift": x})[0]["out"][0],
    ):
        with pytest.raises(TypeError, match="fit has no derivative"):
            rg.grad(f)(0.1)


def test_a_loss_that_closes_over_a_traced_value_is_refused():
    def f(x):
        return rg.fit(lambda p, h, b: x * np.sum(p * p), np.ones(2), rg.SGD(0.1), [0])[0][0]

    with pytest.raises(rg.ClosureError):
        rg.grad(f)(1.0)


def test_train_and_minimize_refuse_what_only_fit_does():
    with pytest.raises(
        TypeError, match=r"adam / sgd / sgd has some that learn; train with revgrad\.fit"
    ):
        rg.train(loss, params_of(), TOWER, batches_of(3), hyper=hyper_of())
    with pytest.raises(TypeError, match=r"only revgrad\.fit"):
        rg.minimize(lambda h: h * h, 1.0, TOWER)
    rg.train(loss, params_of(), TOWER.untuned, batches_of(3), hyper=hyper_of())


# Divergence.


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning", "ignore:invalid:RuntimeWarning")
@pytest.mark.parametrize("kind", ["float32", "float64"])
def test_a_rate_that_is_far_too_high_diverges_with_a_report(kind):
    free = {"transforms": {"learning_rate": "free"}}
    with pytest.raises(
        rg.NotFinite, match=r"step .*sgd / sgd: learning_rate .* far too high"
    ) as caught:
        fit(rg.SGD(1e6, tuned_by=rg.SGD(1e6), **free), steps=200, kind=kind)
    assert 0 < caught.value.step < 200


def test_a_hyperparameter_that_python_s_floats_cannot_take_is_reported():
    free = {"tuned": ("b1",), "transforms": {"b1": "free"}}
    with pytest.raises((rg.NotFinite, rg.LeftDomain)):
        fit(rg.Adam(0.1, tuned_by=rg.SGD(1e200), **free), steps=500)


# Memory and paths.


def test_memory_is_flat_over_ten_thousand_steps():
    batches = batches_of(8)

    def held(steps):
        tracemalloc.start()
        rg.fit(loss, params_of(), TOWER, batches, hyper=hyper_of(), steps=steps)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    held(100)  # what is recorded once
    columns = len(fit()[1]) + 2
    more = held(10_000) - held(1_000)
    assert more < 9_000 * columns * 8 * 2.2  # the paths alone, which an array grows by parts


def test_paths_keep_a_bounded_number_of_rows():
    paths = Paths()
    for t in range(3 * ROWS):
        paths.add(t, float(t), {"learning_rate": -float(t)})
    assert ROWS / 2 <= len(paths.steps) <= ROWS and paths.every == 4
    assert np.array_equal(paths.steps, np.arange(0, 3 * ROWS, 4))
    assert np.array_equal(paths["learning_rate"], -paths.loss)


def test_paths_of_layers_and_weights():
    rates = {"hidden": 0.1, "out": np.array([0.1, 0.2, 0.3, 0.4])}
    _, paths = fit(rg.SGD(rates, tuned_by=rg.SGD(1e-3)))
    names = [f"learning_rate[1] {what}" for what in ("min", "mean", "max")]
    assert [*paths] == ["learning_rate[0]", *names]
    assert [paths[name][0] for name in names] == [0.1, 0.25, 0.4]


# Kill and resume.

KILLED = Path(__file__).with_name("killed_fit.py")


def run_killed(path, *what):
    command = [sys.executable, KILLED, str(path), *map(str, what)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ, timeout=120)
    return done.returncode, done.stdout.split()


@pytest.mark.parametrize("kind", ["float32", "float64"])
@pytest.mark.parametrize("tuned", ["tower", "rtrl", "rank", "shared"])
def test_a_killed_run_ends_with_the_same_numbers(tmp_path, tuned, kind):
    code, (expected, taken) = run_killed("none", tuned, kind)
    path = tmp_path / "run.safetensors"
    assert code == 0
    for kill in (11, 9, 1):
        code, _ = run_killed(path, tuned, kind, kill)
        assert code == -9 and (path.exists() or kill < 3)
    code, (found, rest) = run_killed(path, tuned, kind)
    assert (code, found) == (0, expected) and int(rest) < int(taken)
    assert not path.exists()


def interrupted(path, **options):
    def stop(t, metrics):
        if t == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(save=path, save_every=2, **{"callback": stop} | options)
    assert path.exists()


def test_a_file_of_another_run_is_refused(tmp_path):
    path = tmp_path / "run"
    interrupted(path)
    others = {
        "optimizer": {"optimizer": rg.Adam(0.06, tuned_by=TOWER.tuned_by)},
        "optimizer, or values": {"optimizer": replace(TOWER, tuned_by=rg.SGD(1e-3))},
        "number of steps": {"steps": 9},
        "hyper": {"hyper": hyper_of() | {"shift": 0.2}},
        "tree, shapes or dtypes": {"kind": "float32"},
    }
    for what, change in others.items():
        with pytest.raises(rg.NotResumed, match=what):
            fit(save=path, **change)
    with pytest.raises(rg.NotResumed, match="gradient of step 4"):
        other = [*batches_of(8)[::-1]]
        rg.fit(loss, params_of(), TOWER, other, hyper=hyper_of(), steps=8, save=path)


def test_a_file_with_a_byte_changed_is_refused(tmp_path):
    path = tmp_path / "run"
    interrupted(path)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(rg.NotResumed, match="checksum"):
        fit(save=path)


def test_an_interrupted_run_keeps_what_was_watched(tmp_path):
    path = tmp_path / "run"
    watch = lambda t, p: np.sum(p["out"])
    interrupted(path, watch=watch)
    reports = rg.Report(), rg.Report()
    found = fit(save=path, watch=watch, report=reports[0])
    expected = fit(watch=watch, report=reports[1])
    assert bits(found[0]) == bits(expected[0]) and reports[0].watched == reports[1].watched
    for name in expected[1]:
        assert np.array_equal(found[1][name], expected[1][name])
    assert np.array_equal(found[1].loss, expected[1].loss)


def test_the_one_step_derivative_has_both_modes():
    """What tuners of other kinds push forward is what towers pull back."""
    from test_towers import built

    fitting, forward = (
        built(rg.Adam(0.05, b2=0.9, eps=1e-2, tuned_by=rg.SGD(1e-3)))[0] for _ in range(2)
    )
    forward.bottom.mode = "push"
    for f in (fitting, forward):
        for t in range(3):
            _, g = f.look(t)
            level_inputs = [np.array(x) for x in f.bottom.state.values()]
            f.bottom.step(t, g)
    for k, x in fitting.bottom.state.items():
        assert np.array_equal(x, forward.bottom.state[k])
    ct = np.random.default_rng(0).standard_normal(20)
    pulled = fitting.bottom.pull(ct)
    for k, name in enumerate(fitting.bottom.tuned):
        pushed = {k: np.zeros_like(x) for k, x in forward.bottom.state.items()}
        forward.bottom.push(pushed, knobs={name: 1.0})
        assert pushed["params"] @ ct == pytest.approx(pulled[k], rel=1e-12)
    level, ahead = forward.bottom, {}
    tangents = {k: np.random.default_rng(1).standard_normal(20) for k in level.state}
    moved = {k: x.copy() for k, x in tangents.items()}
    level.push(moved, g=ct)
    at = dict(zip(level.names, level_inputs, strict=False))
    for e in (1e-6, -1e-6):
        ahead[e] = level.optimizer.float_step(
            {k: [x + e * tangents[k]] for k, x in at.items()}, [g + e * ct],
            lambda name, _: {**level.fixed, **level.now}[name], 3.0,
        )  # fmt: skip
    for k, x in moved.items():
        quotient = (ahead[1e-6][k][0] - ahead[-1e-6][k][0]) / 2e-6
        np.testing.assert_allclose(x, quotient, rtol=1e-5, atol=1e-7)
