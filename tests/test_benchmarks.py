"""Every benchmark runs at its smallest size; what it measures is for benchmarks to say."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import fake_cupy
import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
NAMES = sorted({p.stem for p in BENCHMARKS.glob("bench_*.py")} - {"bench_gpu"})


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_benchmark_runs_and_writes_json(name, tmp_path):
    record = tmp_path / "record.json"
    command = [sys.executable, BENCHMARKS / f"{name}.py", "--quick", "--json", record]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) >= 5
    assert json.loads(record.read_text(encoding="utf-8"))


def gpu_benchmark(record, monkeypatch, *options):
    """The record of a run with a CuPy that is not one, and its rows by name."""
    command = ["bench_gpu.py", "--quick", "--dry", "--json", str(record), *options]
    monkeypatch.setattr(sys, "argv", command)
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location("bench_gpu", BENCHMARKS / "bench_gpu.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with fake_cupy.installed():
        module.main()
    found = json.loads(record.read_text(encoding="utf-8"))
    rows = {row["what"]: row for row in found["rows"]}
    assert len(rows) == len(found["rows"])
    assert not any("failed" in row["note"] or "skipped" in row["note"] for row in rows.values())
    return found, rows


def test_that_of_the_gpu_runs_where_there_is_none(tmp_path, monkeypatch, capsys):
    found, rows = gpu_benchmark(tmp_path / "results" / "record.json", monkeypatch, "--alone")
    assert len(capsys.readouterr().out.splitlines()) == len(rows)
    assert {"date", "GPU", "driver", "versions", "commit", "seconds"} <= found.keys()
    returned = [row["note"] for row in rows.values() if "returned" in row["note"]]
    assert len(returned) == 3 and all("returned True" in note for note in returned)
    assert "one graph" in rows["gradient of the paper's MLP, of launch by launch"]["note"]
    assert rows["lenet, T = 2, hypergradient by revgrad, seconds"]["value"] > 0


@pytest.mark.slow
def test_others_on_a_gpu_give_our_answers_where_there_is_none(tmp_path, monkeypatch):
    found = [peer for peer in ("jax", "torch") if importlib.util.find_spec(peer)]
    if not found:
        pytest.skip("neither JAX nor PyTorch is installed")
    _, rows = gpu_benchmark(tmp_path / "record.json", monkeypatch)
    for name, counts in (("mlp", {"jax": 2, "torch": 2}), ("lenet", {"jax": 4, "torch": 2})):
        for peer in found:
            theirs = f"{name}, T = 2, hypergradient by {peer}"
            of_it = [r for w, r in rows.items() if w.startswith(theirs)]
            assert len(of_it) == counts[peer] and all(r["value"] > 0 for r in of_it), of_it


def test_a_part_that_fails_is_a_row_and_the_others_go_on(tmp_path, monkeypatch):
    record = tmp_path / "record.json"
    monkeypatch.setattr("revgrad.buffer.InformationBuffer.multiply", None)
    with pytest.raises(SystemExit):
        gpu_benchmark(record, monkeypatch, "--alone")
    found = json.loads(record.read_text(encoding="utf-8"))["rows"]
    assert "failed" in found[0]["note"] and len(found) > 8
