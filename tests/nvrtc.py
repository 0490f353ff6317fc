"""NVIDIA's run-time compiler without a GPU, by ctypes: `pip install nvidia-cuda-nvrtc-cu12`."""

import ctypes
import ctypes.util
import importlib.util
from pathlib import Path

import pytest


def loaded():
    """libnvrtc, or a skip that says how to get it."""
    spec = importlib.util.find_spec("nvidia")
    places = (
        [Path(x) / "cuda_nvrtc" / "lib" for x in spec.submodule_search_locations] if spec else []
    )
    found = [str(x) for place in places for x in place.glob("libnvrtc.so.*")]
    found += [ctypes.util.find_library("nvrtc")] if ctypes.util.find_library("nvrtc") else []
    if not found:
        pytest.skip("no libnvrtc; pip install 'revgrad[nvrtc]'")
    return ctypes.CDLL(found[0])


def ptx(text, *options):
    """What the compiler makes of a text. Raises: AssertionError with its log."""
    nvrtc, program = loaded(), ctypes.c_void_p()
    given = text.encode()
    assert nvrtc.nvrtcCreateProgram(ctypes.byref(program), given, b"text.cu", 0, None, None) == 0
    listed = (ctypes.c_char_p * len(options))(*(x.encode() for x in options))
    failed = nvrtc.nvrtcCompileProgram(program, len(options), listed)
    log = _answer(nvrtc, "ProgramLog", program)
    assert not failed, log
    found = _answer(nvrtc, "PTX", program)
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    return found, log


def _answer(nvrtc, what, program):
    size = ctypes.c_size_t()
    getattr(nvrtc, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
    buffer = ctypes.create_string_buffer(size.value)
    getattr(nvrtc, f"nvrtcGet{what}")(program, buffer)
    return buffer.value.decode()
