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


def test_that_of_the_gpu_runs_where_there_is_none(tmp_path, monkeypatch, capsys):
    record = tmp_path / "results" / "record.json"
    monkeypatch.setattr(sys, "argv", ["bench_gpu.py", "--quick", "--json", str(record)])
    spec = importlib.util.spec_from_file_location("bench_gpu", BENCHMARKS / "bench_gpu.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with fake_cupy.installed():
        module.main()
    rows = json.loads(record.read_text(encoding="utf-8"))["rows"]
    assert len(rows) == len(capsys.readouterr().out.splitlines()) == 4
    assert "returned True" in rows[2]["note"]
