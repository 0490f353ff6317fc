"""Every benchmark runs at its smallest size; what it measures is for benchmarks to say."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(p.stem for p in BENCHMARKS.glob("bench_*.py")))
def test_the_benchmark_runs_and_writes_json(name, tmp_path):
    record = tmp_path / "record.json"
    command = [sys.executable, BENCHMARKS / f"{name}.py", "--quick", "--json", record]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) >= 5
    assert json.loads(record.read_text(encoding="utf-8"))
