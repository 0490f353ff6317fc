"""The record of an experiment: a JSON file written as it goes, from which a killed one goes on."""

from __future__ import annotations

import json
import os
import platform
import resource
import sys
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import PurePath
from time import perf_counter
from typing import Any

import numpy as np

from revgrad import files


class Record:
    """What an experiment found, by name, in a file that is whole at any time.

        record = Record("figure4.json", settings)
        slopes = [record.once(f"seed {k}", lambda k=k: slope(k)) for k in range(50)]
        record["mean"] = np.mean(slopes, axis=0)
        record.finish()

    Values are what JSON keeps, and NumPy's numbers and arrays, which become lists; floats come back
    as the same bits. Reading a value gives what the file holds, so that a run which went on sees
    just what a run in one go would have seen.
    """

    def __init__(self, path: Any, settings: Any = None):
        """Begin a record at `path`, or go on with the one there.

        settings: a dataclass (or None); its paths are left out, as they change no number.
        Raises: ValueError if the file holds something else, or was made with other settings.
        """
        self.path = os.fspath(path)
        ours = {} if settings is None else asdict(settings)
        ours = {k: _plain(v, k) for k, v in ours.items() if not isinstance(v, PurePath)}
        self._all: dict[str, Any] = {"settings": ours, "seconds": 0.0, "values": {}}
        if os.path.exists(self.path):
            self._all = self._read(ours)
        self._before, self._began = float(self._all["seconds"]), perf_counter()

    def _read(self, ours: dict[str, Any]) -> dict[str, Any]:
        try:
            with open(self.path, encoding="utf-8") as file:
                found = json.load(file)
            theirs, values = found["settings"], found["values"]
            if not (isinstance(theirs, dict) and isinstance(values, dict)):
                raise TypeError
            float(found["seconds"])
        except (ValueError, KeyError, TypeError):
            raise ValueError(
                f"{self.path} is not a record of an experiment; move it away or name another file."
            ) from None
        if theirs != ours:
            names = sorted(k for k in theirs | ours if theirs.get(k) != ours.get(k))
            which = ", ".join(f"{k} {theirs.get(k)!r}, not {ours.get(k)!r}" for k in names)
            raise ValueError(
                f"{self.path} was made with other settings ({which}); move it away to begin anew, "
                "or give the settings it was made with to go on."
            )
        return dict(found)

    def once(self, name: str, compute: Callable[[], Any]) -> Any:
        """The value called `name`: from the file, or else computed and written."""
        if name not in self:
            self[name] = compute()
        return self[name]

    def __contains__(self, name: str) -> bool:
        return name in self._all["values"]

    def __getitem__(self, name: str) -> Any:
        return self._all["values"][name]

    def __setitem__(self, name: str, value: Any) -> None:
        self._all["values"][name] = _plain(value, name)
        self._write()

    def finish(self) -> None:
        """Say that all is there, and what it took: seconds in all, peak memory, versions."""
        self._all["finished"] = {
            "peak memory (MB)": self._peak(),
            "processor": platform.processor() or platform.machine(),
            "python": platform.python_version(),
            "numpy": np.__version__,
            "revgrad": version("revgrad"),
        }
        self._write()

    def _peak(self) -> float:
        """Of this process, or of an earlier one that this went on from."""
        scale = 1 if sys.platform == "darwin" else 1024
        now = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / 1e6
        return max(round(now, 1), float(self._all.get("peak memory (MB)", 0.0)))

    def _write(self) -> None:
        self._all["seconds"] = round(self._before + perf_counter() - self._began, 3)
        self._all["peak memory (MB)"] = self._peak()
        with files.replacing(self.path) as file:
            file.write(json.dumps(self._all, indent=1).encode() + b"\n")


def _plain(value: Any, name: str) -> Any:
    """As JSON gives it back. Raises: TypeError."""

    def default(x: Any) -> Any:
        if isinstance(x, np.ndarray | np.generic):
            return x.tolist()
        raise TypeError(
            f"the value of {name!r} holds a {type(x).__name__}, which JSON cannot keep; record "
            "numbers, strings, lists and dicts of them, or NumPy arrays."
        )

    return json.loads(json.dumps(value, default=default))
