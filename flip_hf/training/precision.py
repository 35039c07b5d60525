# SPDX-License-Identifier: Apache-2.0
"""What a training on a CPU wants of the machine: bfloat16 where the hardware multiplies it, no denormal numbers, and
memory that goes back."""

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator

import torch


def has_fast_bf16(use_cpu: bool) -> bool:
    """Whether the accelerator, or without one the CPU (AMX, AVX512-BF16), multiplies matrices of bfloat16 itself."""
    if torch.accelerator.is_available() and not use_cpu:
        return not torch.cuda.is_available() or torch.cuda.is_bf16_supported(including_emulation=False)
    found: dict = getattr(torch.cpu, "get_capabilities", dict)()  # older torch does not say
    return bool(found.get("amx_bf16") or found.get("avx512_bf16"))


def give_memory_back() -> None:
    """
    From now on blocks of 1 MiB and more go back to the system when they are freed: with Linux's glibc, unless its
    environment variables say what it is to do. Left alone it keeps blocks of up to 32 MiB, into which those of a
    batch of another length do not fit, and a training comes to hold half as much again as it uses.
    """
    if sys.platform == "linux" and not {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"} & os.environ.keys():
        with contextlib.suppress(AttributeError):  # of another C library
            for parameter in (-1, -3):  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
                ctypes.CDLL(None).mallopt(parameter, 1 << 20)


@contextlib.contextmanager
def flushed_denormals() -> Iterator[None]:
    """
    Numbers below 1.2e-38 are 0 inside, on every thread that torch computes with.

    A softmax that is nearly sure leaves gradients of 1e-40, and products of those take some CPUs many times as
    long. `torch.set_flush_denormal` is of one thread, and of those that it starts later; those that run already are
    reached through OpenMP. Where the CPU cannot flush, or its threads are not libgomp's, nothing happens there.
    """
    was_on = bool(torch.full((), 1e-39).mul(0.5) == 0)
    _on_every_thread(True)
    try:
        yield
    finally:
        _on_every_thread(was_on)


def _on_every_thread(on: bool) -> None:
    torch.set_flush_denormal(on)
    with contextlib.suppress(OSError, AttributeError):
        run_in_team = ctypes.CDLL("libgomp.so.1").GOMP_parallel

        @ctypes.CFUNCTYPE(None, ctypes.c_void_p)
        def switch(_: int | None) -> None:
            torch.set_flush_denormal(on)

        run_in_team(switch, None, torch.get_num_threads(), 0)
