"""The GPU's kernels without a GPU: their texts, compiled for the CPU, leave the CPU's bits.

And NVIDIA's compiler takes the same texts. What only a device can show is in tests/gpu.
"""

import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor

import fake_cupy
import numpy as np
import nvrtc
import pytest
import test_fused as fusing
import test_kernel as kernels
from hypothesis import example, given

from revgrad._ext import device, exact, homes, reference
from revgrad.buffer import InformationBuffer
from revgrad.errors import BufferEmpty, FixedOverflow, RatioRefused
from revgrad.fixed import FixedArray, FusedStep
from revgrad.ratio import Ratio

SIZES = [1, 7, 1023, 1024, 1025, 5000]


@pytest.fixture(scope="module")
def cupy():
    with fake_cupy.installed() as module:
        yield module


@pytest.fixture(params=[0, 1, 2], ids=["in order", "backwards", "mixed"])
def order(request):
    """The order in which the threads of a block go."""
    fake_cupy.RawModule.order = request.param
    yield
    fake_cupy.RawModule.order = 0


def away(state, cupy):
    """A state like this one, on the device; its buffers must be new ones."""
    like = cupy.zeros(1)
    variables = {
        k: FixedArray(homes.beside(x.values, like), x.fraction_bits) for k, x in state[0].items()
    }
    return variables, {k: InformationBuffer(len(b.heads), like=like) for k, b in state[1].items()}


def contents(state):
    variables, buffers = state
    integers = {k: homes.to_host(x.values).tobytes() for k, x in variables.items()}
    return integers, {k: b.digest() for k, b in buffers.items()}


def check_steps(cupy, statements, numbers, size, steps=5, many=False, dtype=np.float64):
    """Fused on the device and on the CPU: integers, heads, words, decoded reals; and back."""
    rng = np.random.default_rng(size)
    there, here = away(fusing.made(statements, size), cupy), fusing.made(statements, size)
    start, ratios = contents(there), fusing.ratios_of(there[1], size, many)
    if many:
        numbers = {k: x if k == "t" else np.full(size, x) for k, x in numbers.items()}
    last = next(reversed(there[0]))
    out, wanted = cupy.empty(size, dtype), np.empty(size, dtype)
    step, cpu = FusedStep(statements, *there), FusedStep(statements, *here)
    back = FusedStep(statements[::-1], *there, undone=True)
    inputs = [rng.standard_normal(size).astype(dtype) / 100 for _ in range(steps)]
    for g in inputs:
        reads = numbers | {"g": cupy.asarray(g)}
        assert step.fused(reads, ratios)
        step.run(reads, ratios, {last: out})
        cpu.run(numbers | {"g": g}, ratios, {last: wanted})
        assert contents(there) == contents(here)
        assert out.tobytes() == wanted.tobytes()
    for g in reversed(inputs):
        back.run(numbers | {"g": cupy.asarray(g)}, ratios)
    assert contents(there) == start


@pytest.mark.parametrize("name", fusing.LISTS)
@pytest.mark.parametrize("size", SIZES)
def test_fused_steps_have_the_cpus_bits(cupy, order, name, size):
    check_steps(cupy, *fusing.LISTS[name], size)


@pytest.mark.parametrize("name", ["momentum", "heavy ball"])
def test_so_have_those_with_numbers_per_element_and_floats(cupy, name):
    check_steps(cupy, *fusing.LISTS[name], 1025, many=True)
    check_steps(cupy, *fusing.LISTS[name], 1025, dtype=np.float32)


@pytest.mark.parametrize("at", [0, 511, 1023, 1024, 4999])
@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_a_refusal_changes_nothing_and_names_the_element(cupy, at, bad):
    statements, numbers = fusing.LISTS["momentum"]
    state = away(fusing.made(statements, 5000), cupy)
    step, ratios = FusedStep(statements, *state), fusing.ratios_of(state[1], 5000, False)
    good = cupy.asarray(np.zeros(5000))
    step.run(numbers | {"g": good}, ratios)
    before, g = contents(state), np.zeros(5000)
    g[at] = bad
    with pytest.raises(FixedOverflow, match=f"element {at}:") as caught:
        step.run(numbers | {"g": cupy.asarray(g)}, ratios)
    assert caught.value.index == at and contents(state) == before
    back = FusedStep(statements[::-1], *state, undone=True)
    with pytest.raises(FixedOverflow):
        back.run(numbers | {"g": cupy.asarray(g)}, ratios)
    assert contents(state) == before
    back.run(numbers | {"g": good}, ratios)  # and it can go on
    assert state[1]["velocity"].words == 0


def test_an_undo_too_many_is_refused_and_changes_nothing(cupy):
    statements, numbers = fusing.LISTS["momentum"]
    state, ratios = away(fusing.made(statements, 3000), cupy), {"velocity": Ratio(1, 65536)}
    back = FusedStep(statements[::-1], *state, undone=True)
    reads = numbers | {"g": cupy.asarray(np.zeros(3000))}
    with pytest.raises((BufferEmpty, FixedOverflow)):
        for _ in range(3):
            before = contents(state)
            back.run(reads, ratios)
    assert contents(state) == before


@pytest.mark.parametrize(("name", "kind"), fusing.CASES)
def test_pull_backs_have_the_cpus_bits(cupy, order, name, kind):
    here, there = fusing.Case(name, kind), fusing.Case(name, kind)
    there.variables, there.buffers = away((there.variables, there.buffers), cupy)
    there.reads["g"] = cupy.asarray(there.reads["g"])
    there.cts = {k: cupy.asarray(x) for k, x in there.cts.items()}
    seen = []
    for case in (here, there):
        step, back, found = case.step(), case.back(), []
        for s in (step, step, back, back):
            assert s.fused(case.reads, case.ratios)
            cts = {k: x.copy() for k, x in case.cts.items()}
            out = s.run(case.reads, case.ratios, {}, cts)
            found.append({k: homes.to_host(x).tobytes() for k, x in (out | cts).items()})
        seen.append((found, contents((case.variables, case.buffers))))
    assert seen[0] == seen[1]


# Single operations, with what test_kernel.py knows to be difficult.


def moved(kernel, x, h, ratio, like, times):
    """What `times` multiplies and then as many divides and one more leave, with the words."""
    x, buffer, seen = homes.beside(x.copy(), like), InformationBuffer(len(x), like=like), []
    buffer.heads[:] = homes.beside(h, like)
    move = [buffer.multiply] * times + [buffer.divide] * (times + 1)
    for one in move:
        try:
            one(x, ratio)
        except BufferEmpty:
            seen.append("empty")
        seen.append((homes.to_host(x).tolist(), buffer.digest()))
    return seen


@kernels.pinned
@given(kernels.elements.filter(len))
def test_scales_of_all_ratios_agree(cupy, cases):
    x, h, n, d = kernels.vectors(cases)
    for ratio in (Ratio(n, d), Ratio(int(n[0]), int(d[0]))):
        seen = [moved(exact, x, h, ratio, like, 2) for like in (None, cupy.zeros(1))]
        assert seen[0] == seen[1]


def test_scales_agree_at_every_edge_and_over_many_tiles(cupy, order):
    cases = [*kernels.PINNED, *kernels.edge_cases()]
    x, h, n, d = kernels.vectors((cases * (3000 // len(cases) + 1))[:3000])
    seen = [moved(exact, x, h, Ratio(n, d), like, 3) for like in (None, cupy.zeros(1))]
    assert seen[0] == seen[1]


def test_the_one_head_that_says_nothing(cupy):
    """n = 9, d = 10: a multiply with and without a spill leads to head 72817."""
    x = np.arange(-2000, 2000)
    h = np.where(x % 3, 2**16, 72817 * 2**16 * 9 // 10 + x % 7).astype(np.uint32)
    seen = [moved(exact, x, h, Ratio(9, 10), like, 2) for like in (None, cupy.zeros(1))]
    assert seen[0] == seen[1]


@given(kernels.st.lists(kernels.st.tuples(kernels.int64s, kernels.st.floats(width=32)),
                        min_size=1, max_size=40), kernels.fraction_bits)  # fmt: skip
@example([(2**63 - 1, 1.0)], 0)
@example([(-(2**63), -0.5), (0, np.nan)], 1)
def test_sums_agree(cupy, pairs, bits):
    x = np.array([x for x, _ in pairs])
    for dtype in (np.float32, np.float64):
        delta = np.array([v for _, v in pairs], dtype)
        for sign in (1, -1):
            here, there = x.copy(), cupy.asarray(x)
            bad = exact.add_floats(here, delta, bits, sign)
            assert device_kernel().add_floats(there, cupy.asarray(delta), bits, sign) == bad
            assert np.array_equal(homes.to_host(there), here)
            out, wanted = cupy.empty(len(x), dtype), np.empty(len(x), dtype)
            device_kernel().decode(there, bits, out)
            exact.decode(here, bits, wanted)
            assert out.tobytes() == wanted.tobytes()


def device_kernel():
    from revgrad._ext import cuda

    return cuda


def test_encoding_decoding_and_rounding_scales_agree(cupy):
    reals = np.random.default_rng(0).standard_normal(2500)
    here, there = FixedArray.encode(reals, 55), FixedArray.encode(cupy.asarray(reals), 55)
    for factor in (0.3, -2.0, 1.0, np.where(reals > 0, 0.7, 1.0)):
        here.round_scale(factor)
        there.round_scale(factor)
        assert np.array_equal(homes.to_host(there.values), here.values)
    here.add(0.25)
    there.add(0.25)
    assert there.largest == here.largest
    assert there.decode(np.float32).tobytes() == here.decode(np.float32).tobytes()
    with pytest.raises(FixedOverflow, match="element 2499:"):
        FixedArray.encode(cupy.asarray(np.append(reals[:-1], np.inf)), 55)


# Ratios above 1: words come back, then zeros.


def rises(x, ratios, like):
    """What multiplies and then divides leave behind each one; `words` is below 0 in between."""
    x, buffer, seen = homes.beside(x.copy(), like), InformationBuffer(len(x), like=like), []
    for move, some in ((buffer.multiply, ratios), (buffer.divide, ratios[::-1])):
        for ratio in some:
            move(x, ratio)
            seen.append((homes.to_host(x).tobytes(), buffer.words, buffer.bits, buffer.digest()))
    assert buffer.digest() == InformationBuffer(len(x)).digest()
    assert min(words for _, words, *_ in seen) < 0
    return seen


RISES = {
    "above one alone": [Ratio(10, 9)] * 12,
    "the steepest": [Ratio(65536, 1)] + [Ratio(1, 7)] * 30,
    "after a fall": [Ratio(9, 10)] * 40 + [Ratio(10, 9)] * 60 + [Ratio(3, 100)] * 5,
    "between falls": [Ratio(2, 1), Ratio(1, 3), Ratio(65536, 58982), Ratio(1, 65536)] * 5,
}  # fmt: skip


@pytest.mark.parametrize("name", RISES)
@pytest.mark.parametrize("size", [7, 1025, 3000])
def test_ratios_above_one_take_the_cpus_words_and_zeros(cupy, order, name, size):
    x = np.random.default_rng(size).integers(-(2**40), 2**40, size)
    seen = [rises(x, RISES[name], like) for like in (None, cupy.zeros(1))]
    assert seen[0] == seen[1]


def test_so_do_ratios_above_and_below_one_at_once(cupy):
    rng = np.random.default_rng(1)
    x, ratios = rng.integers(-(2**40), 2**40, 2500), []
    for _ in range(12):
        n, d = rng.integers(1000, 2000, (2, 2500))
        ratios.append(Ratio(n, d))
    seen = [rises(x, ratios, like) for like in (None, cupy.zeros(1))]
    assert seen[0] == seen[1]


def test_words_that_went_to_the_host_come_back_for_a_rise(cupy):
    x, falls = np.arange(1500) << 30, [Ratio(3, 100)] * 40
    here, there = InformationBuffer(1500), InformationBuffer(1500, like=cupy.zeros(1))
    y = cupy.asarray(x)
    for ratio in falls:
        here.multiply(x, ratio)
        there.multiply(y, ratio)
    assert there._tail.below.words > 1500  # or nothing was tried
    for _ in range(43):
        here.multiply(x, Ratio(100, 3))
        there.multiply(y, Ratio(100, 3))
    assert there.words == here.words < 0 and there.digest() == here.digest()
    twin, z = there.copy(), y.copy()
    for buffer, v in ((there, y), (twin, z)):
        for ratio in [Ratio(100, 3)] * 43 + falls:
            buffer.divide(v, ratio)
        assert buffer.digest() == InformationBuffer(1500).digest()


def test_a_rise_out_of_int64_is_refused_and_changes_nothing(cupy):
    x = cupy.asarray(np.array([3, 5, 2**62, 7, 2**61]))
    buffer = InformationBuffer(5, like=x)
    ratio = Ratio(np.array([1, 9, 2, 1, 3]), np.array([2, 10, 1, 1, 1]))
    before = homes.to_host(x).tolist(), buffer.digest()
    with pytest.raises(FixedOverflow, match="element 2 times 2/1") as caught:
        buffer.multiply(x, ratio)
    assert caught.value.index == 2 and (homes.to_host(x).tolist(), buffer.digest()) == before
    with pytest.raises(BufferEmpty):  # no zeros were taken, so it still knows that it is empty
        buffer.divide(cupy.asarray(np.zeros(5, np.int64) + 3), Ratio(1, 65536))
    with pytest.raises(RatioRefused, match="keep=True"):
        InformationBuffer(5, keep=False, like=x).multiply(x, ratio)


def test_words_go_to_the_host_and_come_back(cupy, order):
    size, steps = 1500, 40
    x, ratio = np.arange(size) << 40, Ratio(3, 100)
    here, there = InformationBuffer(size), InformationBuffer(size, like=cupy.zeros(1))
    y, start = cupy.asarray(x), there.digest()
    for t in range(steps):
        here.multiply(x, ratio)
        there.multiply(y, ratio)
        if t % 13 == 0:
            assert there.digest() == here.digest() and there.words == here.words
    assert there._tail.below.words > size  # or nothing was tried
    assert here.bits == there.bits
    twin = there.copy()
    for buffer, z in ((there, y), (twin, y.copy())):
        for _ in range(steps):
            buffer.divide(z, ratio)
        assert buffer.digest() == start and np.array_equal(homes.to_host(z), np.arange(size) << 40)
    with pytest.raises(BufferEmpty):
        there.divide(y, Ratio(1, 65536))


def test_words_that_are_not_kept_are_counted(cupy):
    x, ratio = cupy.asarray(np.arange(2000)), Ratio(1, 65536)
    buffer = InformationBuffer(2000, keep=False, like=x)
    for k in range(1, 4):
        buffer.multiply(x, ratio)
        assert buffer.words == 2000 * k
    assert buffer._tail.memory.size == 1 and buffer.copy().words == 6000


# Faults.

FAULTS = {
    "words in no order": (r"mask & \(\(1u << \(threadIdx.x & 31\)\) - 1u\)", "mask & 0"),
    "no wait for the counts": (
        r"(static __device__ inline void add_up[^}]*?)__syncthreads\(\);", r"\1"),
    "a sum in another order": (
        r"width = 16; width; width /= 2", "width = 1; width < 32; width *= 2"),
    "a spill forgotten": (r"counts\[(.*?)\] = g0\[GROUPS\]", r"counts[\1] = g0[GROUPS] / 2"),
    "a head that says too much": (r"least < threshold \? -1 : 0", "least < threshold ? 1 : 0"),
    "a sign": (r"bad \|= !fixed_sum\(vx0\[k\], v, -1", "bad |= !fixed_sum(vx0[k], v, 1"),
    "an offset": (r"offsets\[t\] = sum;", "offsets[t] = 0;"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_caught(monkeypatch, name):
    right, wrong = FAULTS[name]
    text_of, planted = device.text_of, []

    def faulty(*forms):
        text, parameters = text_of(*forms)
        changed = re.sub(right, wrong, text, flags=re.DOTALL)
        planted.append(changed != text)
        return changed, parameters

    monkeypatch.setattr(device, "text_of", faulty)
    with fake_cupy.installed() as cupy, pytest.raises(AssertionError):
        try:
            for k in range(3):
                monkeypatch.setattr(fake_cupy.RawModule, "order", k)
                check_steps(cupy, *fusing.LISTS["heavy ball"], 3000, steps=9)
                test_pull_backs_have_the_cpus_bits(cupy, None, "momentum", "number")
                test_the_one_head_that_says_nothing(cupy)
        except (BufferEmpty, FixedOverflow) as error:
            raise AssertionError("not reversed") from error
    assert any(planted)


# NVIDIA's compiler.


def texts(monkeypatch):
    """Every text that the steps, pull-backs and single operations above are made of."""
    seen, text_of = {}, device.text_of

    def noted(*forms):
        seen[forms] = text_of(*forms)
        return seen[forms]

    monkeypatch.setattr(device, "text_of", noted)
    with fake_cupy.installed() as cupy:
        for name in fusing.LISTS:
            check_steps(cupy, *fusing.LISTS[name], 9, steps=1)
        check_steps(cupy, *fusing.LISTS["momentum"], 9, many=True, dtype=np.float32)
        for case in fusing.CASES:
            test_pull_backs_have_the_cpus_bits(cupy, None, *case)
        test_words_go_to_the_host_and_come_back(cupy, None)
        test_encoding_decoding_and_rounding_scales_agree(cupy)
    return [text for text, _ in seen.values()]


def test_nvidias_compiler_takes_every_kernel(monkeypatch):
    nvrtc.loaded()
    found = texts(monkeypatch)
    assert len(found) > 20
    for text in found:
        for architecture in ("sm_80", "sm_90"):
            options = (*device_options(), f"--gpu-architecture={architecture}")
            made, _ = nvrtc.ptx(text, *options)
            assert re.search(r"\.entry run\(", made) and "fma.rn.f64" not in made
            assert not re.search(r"^\s*(@\S+\s+)?(atom|red)\.", made, re.MULTILINE)  # no atomics


def device_options():
    return "--std=c++14", "--fmad=false"


@pytest.mark.slow
def test_nvcc_compiles_every_kernel(monkeypatch, tmp_path):
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("no nvcc on the path")
    unused = "-diag-suppress=177,550"  # helpers and registers that a text does without
    flags = ["--std=c++17", "--fmad=false", "-arch=sm_90", "-Werror", "all-warnings", unused]

    def compiled(pair):
        source = tmp_path / f"text{pair[0]}.cu"
        source.write_text(pair[1], encoding="utf-8")
        command = [nvcc, *flags, "-cubin", "-o", f"{source}bin", source]
        return subprocess.run(command, capture_output=True, text=True)

    wrong = [(0, "__global__ void run(double *x) { x[0] = y; }")]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for done in pool.map(compiled, enumerate(texts(monkeypatch))):
            assert done.returncode == 0, done.stderr[-3000:]
        assert all(done.returncode for done in pool.map(compiled, wrong))


def test_the_checker_of_fused_multiply_adds_can_fail():
    text = 'extern "C" __global__ void run(double *x) { x[0] = x[0] * x[1] + x[2]; }'
    assert "fma.rn.f64" in nvrtc.ptx(text, "--gpu-architecture=sm_80")[0]
    assert "fma.rn.f64" not in nvrtc.ptx(text, "--gpu-architecture=sm_80", "--fmad=false")[0]


def test_reference_and_device_cut_blocks_alike():
    assert device.TILE == exact.FUSED_ELEMENTS == reference.FUSED_ELEMENTS
    header = device.prelude()
    for name in ("TILE", "THREADS", "SUMS"):
        assert re.search(rf"#define {name} {getattr(device, name)}\b", header)
