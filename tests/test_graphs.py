"""Replays as CUDA graphs, through a CuPy that is not one: the bits of plain replays, or no graph.

tests/gpu runs the same on a device.
"""

import contextlib
import gc
import threading
import weakref

import fake_cupy
import numpy as np
import pytest
import test_cuda_train as training

import revgrad as rg
from revgrad import recording
from revgrad._ext import graphs, homes
from revgrad.compiled import TwoPhase
from revgrad.extend import Primitive
from revgrad.replay import Replay

RNG = np.random.default_rng(0)
W, X = (RNG.standard_normal(s).astype(np.float32) for s in ((6, 5), (64, 6)))


@pytest.fixture(scope="module")
def cupy():
    with fake_cupy.installed() as module:
        yield module


def layer(w, x, rate):
    y = np.tanh(x @ w) * rate
    return y - np.max(y, axis=0), np.sum(y * y)


def bits(out):
    return [homes.to_host(x).tobytes() for x in (out if isinstance(out, (tuple, list)) else [out])]


def graphs_of(compiled):
    return [entry.replay().graphs for entry in compiled.entries.values()]


def launches(compiled):
    return sum(phase.launches for g in graphs_of(compiled) for phase in g.phases)


def check(cupy, f, *calls, launched=None, why=None):
    """Compiled and plain give the same bits in all calls; returns the compiled function."""
    compiled = rg.compile(f)
    for given in calls:
        put = [cupy.asarray(x) if isinstance(x, np.ndarray) else x for x in given]
        assert bits(compiled(*put)) == bits(f(*put))
    (found,) = graphs_of(compiled)
    assert found.why == why if why is None else why in (found.why or "no reason")
    if launched:  # twice less where an input was, by chance, at one place for a while
        assert launched - 2 <= launches(compiled) <= launched
    return compiled


def test_a_replay_is_launched_from_its_third_call_on(cupy):
    calls = [(W * k, X + k, np.float32(0.5)) for k in range(1, 9)]
    check(cupy, layer, *calls, launched=6)


def test_numbers_change_without_a_new_graph(cupy):
    calls = [(W, X, np.float32(0.1 * k)) for k in range(1, 30)]
    found = graphs_of(check(cupy, layer, *calls, launched=27))[0]
    assert found.phases[0].captures <= 3
    calls = [(W.astype(float), X.astype(float), 0.1 * k) for k in range(1, 30)]  # Python's own
    check(cupy, layer, *calls, launched=27)


def test_what_nothing_reads_may_change(cupy):
    unread = lambda x, n, y: np.sum(np.exp(x))
    check(cupy, unread, *[(W, np.float32(k), X + k) for k in range(20)], launched=18)


def test_rows_of_a_data_set_are_taken_by_indices_on_the_device(cupy):
    rows = lambda x, i: np.sum(x[i] * 2, axis=0)
    check(cupy, rows, *[(X, RNG.integers(0, 64, 9)) for _ in range(9)], launched=7)


def test_what_is_computed_of_numbers_alone_is_done_before_a_launch(cupy):
    decayed = lambda x, n, t: np.sum(np.exp(x) * np.exp(n)) * (1.0 - 0.9**t)
    calls = [(W, np.float32(k / 40), float(k + 1)) for k in range(40)]
    check(cupy, decayed, *calls, launched=38)


CAST = lambda x, n: np.sum(np.exp(x) * n)  # a strong float64 among float32s


def test_numbers_that_are_part_of_a_graph_lead_to_another(cupy):
    calls = [(W, np.float64(k // 40)) for k in range(120)]
    found = graphs_of(check(cupy, CAST, *calls))[0]
    assert 3 <= found.phases[0].captures <= 5 and found.phases[0].launches >= 114


def test_those_that_change_too_often_lead_to_none(cupy):
    calls = [(W, np.float64(k / 9)) for k in range(9)]
    compiled = check(cupy, CAST, *calls, why="4 captures for 0 launches: input 1 changes")
    assert not isinstance(next(iter(compiled.entries.values())).replay().run[0], graphs.Phase)


def test_inputs_are_read_where_they_are_while_they_stay_there(cupy):
    compiled, w, x = rg.compile(layer), cupy.asarray(W), cupy.asarray(X)
    for k in range(6):
        w[...] = cupy.asarray(W + k)  # what lies there is another matter
        assert bits(compiled(w, x, 0.5)) == bits(layer(w, x, 0.5))
    (phase,) = graphs_of(compiled)[0].phases
    assert phase.launches == 4 and not phase.moved and not phase.graph.buffers
    kept = [cupy.asarray(W - k) for k in range(4)]
    for other in kept:
        assert bits(compiled(other, x, 0.5)) == bits(layer(other, x, 0.5))
    assert phase.captures == 2 and phase.moved == {0}
    assert bits(compiled(w, x, 0.5)) == bits(layer(w, x, 0.5))
    assert phase.captures == 2 and w.tobytes() == (W + 5).tobytes()  # nobody wrote to it


def test_parts_of_one_vector_are_copied_at_once(cupy):
    compiled, flat = rg.compile(lambda a, b: np.sum(a * 2) + b), np.arange(11.0)
    for k in range(12):
        whole, other = cupy.asarray(flat + k), cupy.asarray(flat - k)
        a, b = whole[:5], whole[5:].reshape(2, 3)
        if k == 8:  # nearly so
            b = other[5:].reshape(2, 3)
        if k == 9:
            a, b = other[6:], other[:6].reshape(2, 3)
        assert bits(compiled(a, b)) == bits(np.sum(a * 2) + b)
    (phase,) = graphs_of(compiled)[0].phases
    assert phase.launches >= 7 and phase.moved == {0, 1}
    assert len(phase.graph.twins) == 1 and set(phase.graph.buffers) == {0, 1}


def test_other_strides_are_another_matter(cupy):
    compiled, x = rg.compile(lambda x: np.sum(np.exp(x), axis=0)), RNG.standard_normal((7, 7))
    for k in range(30):
        given = cupy.asarray(x + k).T if k > 9 else cupy.asarray(x + k)
        assert bits(compiled(given)) == bits(np.sum(np.exp(given), axis=0))
    assert graphs_of(compiled)[0].phases[0].launches > 20


def test_results_are_the_callers(cupy):
    compiled, kept = rg.compile(layer), []
    for k in range(6):
        given = cupy.asarray(W + k), cupy.asarray(X), np.float32(0.5)
        kept.append((compiled(*given), bits(layer(*given))))
        kept[-1][0][0][...] = kept[-1][0][0] + 0.0
    assert all(bits(out) == wanted for out, wanted in kept)


def test_an_output_that_is_an_input_stays_it(cupy):
    compiled = rg.compile(lambda x, y: (x, x + y))
    for _ in range(4):
        x, y = cupy.asarray(X), cupy.asarray(X)
        assert compiled(x, y)[0] is x
    assert launches(compiled) == 2


mask = Primitive("mask", lambda x: np.sum(x[x > 0]))
own = Primitive("own", lambda x: x + 1)
mask.run.__module__ = "revgrad.rules.test"  # so that only CUDA can refuse it

REFUSED = {
    "a view": (lambda x: (x.T, x + 1), "an output is a view of an input"),
    "a wait": (lambda x: mask(x), "aptur"),
    "a function of one's own": (lambda x: own(x) * 2, "own is not one of revgrad's own"),
    "much": (lambda x: np.sum(np.broadcast_to(x, (2**18, *x.shape)) * 2.0), "more than 16777216"),
}  # fmt: skip


def test_what_cannot_be_captured_runs_as_it_is_for_good(cupy):
    for name, (f, why) in REFUSED.items():
        compiled = check(cupy, f, *[(X[:3] + k,) for k in range(5)], why=why)
        entry = next(iter(compiled.entries.values())).replay()
        assert not isinstance(entry.run[0], graphs.Phase), name
        assert not cupy.cuda.get_current_stream().is_capturing()


def test_copies_from_the_host_are_refused(cupy):
    three = Primitive("three", lambda x: x + cupy.asarray(np.arange(3.0)))
    three.run.__module__ = "revgrad.rules.test"
    check(cupy, lambda x: three(x), *[(np.ones(3) * k,) for k in range(4)], why="from the host")
    assert cupy.asarray(np.arange(3.0)).tolist() == [0, 1, 2]  # outside they are welcome


def test_graphs_can_be_turned_off(cupy, monkeypatch):
    monkeypatch.setenv("REVGRAD_GRAPHS", "0")
    check(cupy, layer, *[(W, X, 0.5)] * 4, why="REVGRAD_GRAPHS is 0")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_products_go_to_cublas_as_cupy_sends_them(cupy, dtype):
    made = lambda *shape: RNG.standard_normal(shape).astype(dtype)
    pairs = [
        (made(4, 3), made(3, 5)), (made(3, 4).T, made(3, 5)), (made(4, 3), made(5, 3).T),
        (made(3, 4).T, made(5, 3).T), (made(3), made(3, 5)), (made(4, 3), made(3)),
        (made(1, 3), made(3, 5)), (made(6, 4, 3), made(6, 3, 5)), (made(4, 3), made(6, 3, 5)),
        (made(2, 6, 4, 3), made(3, 5)),
    ]  # fmt: skip
    for a, b in pairs:
        check(cupy, lambda a, b: (a * 2) @ (b * 2), *[(a + k, b) for k in range(5)], launched=3)


def test_a_step_back_is_launched_too_and_belongs_to_its_step_forward(cupy):
    def pair(x, w):
        y = np.tanh(x @ w)
        return [y], lambda ct: [ct @ w.T * (1 - y @ w.T), np.sum(y * ct)]

    first, second = (X, W), lambda outs: [np.ones_like(outs[0])]
    put = cupy.asarray
    phases = TwoPhase(pair, [put(x) for x in first], second, borrow=True)
    for k in range(8):
        given = put(X + k), put(W)
        _, then = phases.start(given)
        _, overtaking = phases.start((put(X - k), put(W)))
        wanted, want = pair(*given)
        ct = put(np.cos(homes.to_host(wanted[0])))
        assert bits(then([ct])) == bits(want(ct))
        wanted, want = pair(put(X - k), put(W))
        assert bits(overtaking([ct])) == bits(want(ct))
    found = phases.replay().graphs
    assert found.why is None and max(p.captures for p in found.phases) <= 2
    assert min(p.launches for p in found.phases) >= 10


def test_phases_go_back_to_what_ran_before_them(cupy):
    """A first phase that runs plain in between leaves the second one its own residuals."""

    def pair(x, n):
        y = np.exp(x) * n
        return [y], lambda ct: [ct * y]

    put = cupy.asarray
    phases = TwoPhase(pair, [put(X), np.float64(0)], lambda outs: [np.ones_like(outs[0])])
    numbers = [0] * 3 + [1] + [0] * 3 + [1, 2, 3, 4, 5] + [0] * 3
    for n in map(np.float64, numbers):
        _, then = phases.start((put(X), n))
        assert bits(then([put(X)])) == bits([put(X) * (np.exp(put(X)) * n)])
    assert "input 1 changes" in phases.replay().graphs.why


def test_numbers_of_a_first_phase_are_read_in_the_second(cupy):
    def pair(x, n):
        y = np.exp(x) * (1.0 - n)
        return [y], lambda ct: [ct * y * (1.0 - n) + n**2.0]

    put = cupy.asarray
    phases = TwoPhase(pair, [put(X), 0.5], lambda outs: [np.ones_like(outs[0])])
    for k in range(12):
        n, x = k / 12, put(X + k)
        (y,), then = phases.start((x, n))
        assert bits(y) == bits(np.exp(x) * (1.0 - n))
        wanted = put(X) * (np.exp(x) * (1.0 - n)) * (1.0 - n) + n**2.0
        assert bits(then([put(X)])) == bits(wanted)
    assert phases.replay().graphs.why is None
    assert min(p.launches for p in phases.replay().graphs.phases) >= 7


def test_two_replays_may_read_what_the_other_wrote(cupy):
    entry = recording.Entry(
        lambda x, w: ([np.tanh(x @ w)], None),
        [cupy.asarray(X), cupy.asarray(W[:, :1] @ W[:1])],
        borrow=True,
    )
    parts = [entry.program.inputs], [entry.fused], [entry.program.outputs]
    turns = [Replay(*parts, borrow=True) for _ in range(2)]
    w = W[:, :1] @ np.ones((1, 6), np.float32)
    there = cupy.asarray(w)
    x = wanted = cupy.asarray(X)
    for k in range(12):
        (x,), wanted = turns[k % 2].run[0](x, there), np.tanh(wanted @ there)
        assert bits(x) == bits(wanted)
    assert all(t.graphs.why is None and t.graphs.phases[0].launches >= 3 for t in turns)


def test_every_thread_has_graphs_of_its_own(cupy):
    compiled, wrong = rg.compile(layer), []

    def work(k):
        for n in range(8):
            given = cupy.asarray(W + n), cupy.asarray(X + k), np.float32(k)
            if bits(compiled(*given)) != bits(layer(*given)):
                wrong.append((k, n))
        (entry,) = compiled.entries.values()
        if entry.replay().graphs.phases[0].launches < 4:
            wrong.append(k)

    compiled(cupy.asarray(W), cupy.asarray(X), np.float32(1))
    threads = [threading.Thread(target=work, args=(k,)) for k in range(1, 4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


def test_training_goes_by_graphs(cupy):
    recording._kept.clear()
    training.hypergradient(cupy.asarray, "momentum", rg.Reversible(), steps=20)
    (found,) = (r for rs in recording._kept.values() for r in rs.found.values())
    forth, back = found.program.replay().graphs, found.products.replay().graphs
    assert forth.why is None and back.why is None
    assert forth.phases[0].launches >= 17 and min(p.launches for p in back.phases) >= 17


def test_aux_is_the_callers_though_graphs_overwrite_it(cupy):
    seen, x = [], cupy.asarray(X)
    loss = lambda p, h, batch: (np.sum((x @ p) ** 2) / 100, {"first": p[0] * 2})
    rg.train(loss, cupy.asarray(W), rg.Momentum(0.1), [0], steps=9, has_aux=True,
             callback=lambda t, m: seen.append((m, homes.to_host(m["aux"]["first"]))))  # fmt: skip
    assert len({x.tobytes() for _, x in seen}) == 9
    assert all(homes.to_host(m["aux"]["first"]).tobytes() == x.tobytes() for m, x in seen)


def test_nothing_of_it_is_on_a_cpu():
    compiled = rg.compile(layer)
    for _ in range(4):
        compiled(W, X, np.float32(1))
    (entry,) = compiled.entries.values()
    assert entry.replay().graphs is None and type(entry.replay().run[0]) is type(layer)


# Faults.


def _unchecked(self, given):
    return ""


FAULTS = {
    "inputs that moved are read where they were": ("Graph.misfit", _unchecked),
    "results are overwritten": (
        "Graph.copied",
        property(lambda self: [False] * len(self.outputs), lambda self, x: None),
    ),
    "residuals of another run": ("Graph.base", None),
    "numbers stay what they were": ("_bits", lambda x: ()),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_caught(cupy, monkeypatch, name):
    path, wrong = FAULTS[name]
    if path == "Graph.base":
        always = property(lambda self: self.owner.ran[: self.phase.k], lambda self, x: None)
        monkeypatch.setattr(graphs.Graph, "base", always, raising=False)
    else:
        owner, _, attribute = path.rpartition(".")
        there = getattr(graphs, owner) if owner else graphs
        monkeypatch.setattr(there, attribute, wrong, raising=False)
    with pytest.raises(AssertionError):
        test_inputs_are_read_where_they_are_while_they_stay_there(cupy)
        test_results_are_the_callers(cupy)
        test_numbers_change_without_a_new_graph(cupy)
        test_phases_go_back_to_what_ran_before_them(cupy)


def test_memory_that_others_may_have_is_noticed(cupy, monkeypatch):
    """Of a fake that would not say so, no test here could tell."""
    monkeypatch.setattr(cupy.cuda, "using_allocator", lambda malloc: contextlib.nullcontext())
    check(cupy, layer, *[(W, X, 0.5)] * 4, why="others may have by now")


def test_a_workspace_that_is_forgotten_is_noticed(cupy, monkeypatch):
    from revgrad._ext import products

    bind = products.Handle.bind

    def forgetful(self, stream):
        bind(self, stream)
        self._call("cublasSetStream_v2", "pp", self.handle, stream.ptr)

    monkeypatch.setattr(products.Handle, "bind", forgetful)
    check(cupy, layer, *[(W, X, 0.5)] * 4, why="cuBLAS would allocate")


def test_graphs_go_with_their_replays(cupy):
    compiled = check(cupy, layer, *[(W, X, 0.5)] * 5)
    pool = weakref.ref(graphs_of(compiled)[0].pool)
    del compiled
    gc.collect()
    assert pool() is None
