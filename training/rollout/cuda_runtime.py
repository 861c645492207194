"""Compiles CUDA C++ at run time with NVRTC, which comes with PyTorch, and launches it on the current stream.

A launch may overlap the kernel before it (programmatic dependent launch, from compute capability 9.0): the kernel
itself says with `griddepcontrol` up to where. It can be captured in a CUDA graph like any other.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Macros = tuple[tuple[str, int], ...]
PROGRAMMATIC_LAUNCH = 6  # CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION


class _Attribute(ctypes.Structure):
    _fields_ = (("id", ctypes.c_uint), ("pad", ctypes.c_uint), ("value", ctypes.c_int), ("rest", ctypes.c_char * 60))


class _LaunchConfig(ctypes.Structure):
    _fields_ = (
        ("grid", ctypes.c_uint * 3), ("block", ctypes.c_uint * 3), ("shared", ctypes.c_uint),
        ("stream", ctypes.c_void_p), ("attributes", ctypes.POINTER(_Attribute)), ("count", ctypes.c_uint),
    )  # fmt: skip


@functools.cache
def available() -> bool:
    """Whether this process can compile and launch: an NVIDIA device with bf16, its driver and NVRTC."""
    if not torch.cuda.is_available() or torch.version.cuda is None or torch.cuda.get_device_capability() < (8, 0):
        return False
    try:
        _nvrtc(), _driver()
    except OSError:
        return False
    return True


@functools.cache
def _nvrtc() -> Any:
    major = str(torch.version.cuda).split(".")[0]
    packaged = Path(torch.__file__).parents[1].glob(f"nvidia/*/lib/libnvrtc.so.{major}*")
    for name in (f"libnvrtc.so.{major}", *map(str, packaged), "libnvrtc.so"):
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise OSError(f"libnvrtc.so.{major} is not to be found, though it should come with this PyTorch")


@functools.cache
def _driver() -> Any:
    return ctypes.CDLL("libcuda.so.1")


@functools.cache
def compile_cubin(source: str, macros: Macros, architecture: str) -> bytes:
    """Machine code of a source for an architecture such as "sm_90"; may run in any thread, several at once.

    Raises RuntimeError with the compiler's words.
    """
    nvrtc, program = _nvrtc(), ctypes.c_void_p()
    options = [f"--gpu-architecture={architecture}", *(f"-D{name}={value}" for name, value in macros)]
    words = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernel.cu", 0, None, None)
    try:
        size = ctypes.c_size_t()
        if nvrtc.nvrtcCompileProgram(program, len(options), words):
            nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
            log = ctypes.create_string_buffer(size.value)
            nvrtc.nvrtcGetProgramLog(program, log)
            raise RuntimeError(f"a kernel did not compile for {architecture}: {log.value.decode()[:2000]}")
        nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size))
        binary = ctypes.create_string_buffer(size.value)
        nvrtc.nvrtcGetCUBIN(program, binary)
        return binary.raw
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def architecture_of(device: torch.device) -> str:
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


class Kernel:
    """One compiled kernel on one device. `overlap` is for comparisons: without it a launch waits for the one before."""

    overlap = True

    def __init__(self, source: str, name: str, macros: Macros, device: torch.device) -> None:
        binary = compile_cubin(source, macros, architecture_of(device))
        self.overlaps = torch.cuda.get_device_capability(device)[0] >= 9
        module, self.function = ctypes.c_void_p(), ctypes.c_void_p()
        with torch.cuda.device(device):
            check(_driver().cuModuleLoadData(ctypes.byref(module), binary), f"loading kernel {name}")
        check(_driver().cuModuleGetFunction(ctypes.byref(self.function), module, name.encode()), f"finding {name}")

    def launch(self, blocks: int, threads: int, *arguments: Any) -> None:
        """Tensors are passed as pointers, int as 64 bits (give ctypes values for others), float as fp32."""
        values = [as_argument(argument) for argument in arguments]
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        attribute = _Attribute(PROGRAMMATIC_LAUNCH, 0, 1)
        config = _LaunchConfig(
            (blocks, 1, 1), (threads, 1, 1), 0, torch.cuda.current_stream().cuda_stream, ctypes.pointer(attribute),
            int(self.overlap and self.overlaps),
        )  # fmt: skip
        check(_driver().cuLaunchKernelEx(ctypes.byref(config), self.function, pointers, None), "launching a kernel")


def as_argument(value: Any) -> Any:
    if isinstance(value, Tensor):
        return ctypes.c_void_p(value.data_ptr())
    if isinstance(value, float):
        return ctypes.c_float(value)
    return value if isinstance(value, ctypes._SimpleCData) else ctypes.c_longlong(value)


def check(result: int, what: str) -> None:
    if result:
        text = ctypes.c_char_p()
        _driver().cuGetErrorString(result, ctypes.byref(text))
        raise RuntimeError(f"CUDA failed {what}: {(text.value or b'unknown error').decode()} ({result})")
