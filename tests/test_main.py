"""python -m revgrad says what runs here and tries the laws."""

import os
import subprocess
import sys

import numpy as np
import pytest

from revgrad import __main__ as main
from revgrad import __version__
from revgrad._ext import kernel
from revgrad.buffer import InformationBuffer


def test_it_prints_the_facts_and_holds(capsys):
    assert main.main(["--seconds", "0.1"]) == 0
    said = capsys.readouterr().out
    for word in (__version__, "instruction set", kernel.instruction_set(), "GPU", "compiler"):
        assert word in said
    assert said.count("held") == len(main.LAWS)


def test_it_runs_as_a_module_with_the_set_that_is_forced():
    for name in kernel.instruction_sets():
        run = subprocess.run(
            [sys.executable, "-m", "revgrad", "--seconds", "0"],
            env=os.environ | {"REVGRAD_ISA": name},
            capture_output=True,
            text=True,
        )
        assert run.returncode == 0 and f"{name} (of" in run.stdout, run.stderr


def test_the_self_test_stays_within_its_time(monkeypatch):
    clock = iter(np.arange(0.0, 100.0))
    monkeypatch.setattr(main.time, "monotonic", lambda: next(clock))
    assert set(main.self_test(3.0).values()) == {3}


def test_a_planted_fault_fails_the_self_test(monkeypatch, capsys):
    right = InformationBuffer.multiply

    def faulty(self, x, ratio, lo=0):
        right(self, x, ratio, lo)
        self.heads[:1] += self.heads[:1] < 2**31

    monkeypatch.setattr(InformationBuffer, "multiply", faulty)
    monkeypatch.setattr(main.FusedStep, "_bound", lambda *_: None)
    assert main.main(["--seconds", "0.1"]) == 1
    assert "FAILED" in capsys.readouterr().out


@pytest.mark.parametrize("law", main.LAWS)
def test_each_law_holds(law):
    law(np.random.default_rng(7))
