"""A record is whole at any time, and what was killed goes on with the numbers it had."""

import json
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from revgrad.records import Record


@dataclass
class Settings:
    folder: Path = Path(".")
    steps: int = 3
    rate: float = 0.1


KILLED = """
import os, signal, sys
from revgrad.records import Record
record = Record(sys.argv[1])
for k in range(5):
    if k == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    print(record.once(f"seed {k}", lambda: [print("computed"), 1 / (k + 3)][1]))
record.finish()
"""


def run(path, kill):
    return subprocess.run(
        [sys.executable, "-c", KILLED, str(path), str(kill)], capture_output=True, text=True
    )


def test_a_killed_experiment_goes_on_with_the_same_numbers(tmp_path):
    path = tmp_path / "record.json"
    assert run(path, 3).returncode == -signal.SIGKILL
    again, alone = run(path, 9), run(tmp_path / "alone.json", 9)
    assert again.stdout.count("computed") == 2
    assert again.stdout.replace("computed\n", "") == alone.stdout.replace("computed\n", "")
    found = json.loads(path.read_text())
    assert found["values"] == {f"seed {k}": 1 / (k + 3) for k in range(5)}
    assert found["finished"]["numpy"] == np.__version__


def test_values_are_those_of_the_file(tmp_path):
    record = Record(tmp_path / "r.json", Settings())
    value = record.once("x", lambda: {"mean": np.float32(0.1), "each": np.arange(3.0), "n": (1, 2)})
    assert value == {"mean": float(np.float32(0.1)), "each": [0.0, 1.0, 2.0], "n": [1, 2]}
    assert Record(tmp_path / "r.json", Settings())["x"] == value
    assert "x" in record and "y" not in record


def test_memory_is_the_most_of_all_processes(tmp_path):
    path = tmp_path / "r.json"
    Record(path).finish()
    told = json.loads(path.read_text())
    assert 10 < told["finished"]["peak memory (MB)"] <= told["peak memory (MB)"] < 1e5
    path.write_text(json.dumps(told | {"peak memory (MB)": 1e6}))
    Record(path).finish()
    assert json.loads(path.read_text())["finished"]["peak memory (MB)"] == 1e6


def test_paths_are_no_settings_and_seconds_add_up(tmp_path):
    record = Record(tmp_path / "r.json", Settings(folder=tmp_path))
    record["x"] = 1
    told = json.loads((tmp_path / "r.json").read_text())
    assert told["settings"] == {"steps": 3, "rate": 0.1}
    told["seconds"] = 1000.0
    (tmp_path / "r.json").write_text(json.dumps(told))
    Record(tmp_path / "r.json", Settings())["x"] = 2
    assert json.loads((tmp_path / "r.json").read_text())["seconds"] >= 1000


def test_other_settings_and_other_files_are_refused(tmp_path):
    path = tmp_path / "r.json"
    Record(path, Settings())["x"] = 1
    with pytest.raises(ValueError, match=r"other settings \(steps 3, not 4\)"):
        Record(path, Settings(steps=4))
    for text in ("", "[]", "{}", '{"settings": 1, "seconds": 0, "values": {}}', "\xff"):
        path.write_text(text, encoding="latin-1")
        with pytest.raises(ValueError, match="is not a record"):
            Record(path, Settings())
        assert path.read_text(encoding="latin-1") == text


def test_what_json_cannot_keep_is_refused_and_nothing_is_lost(tmp_path):
    record = Record(tmp_path / "r.json", Settings())
    record["x"] = 1
    with pytest.raises(TypeError, match="'y' holds a complex"):
        record["y"] = {"z": 1j}
    assert Record(tmp_path / "r.json", Settings())["x"] == 1
