# SPDX-License-Identifier: Apache-2.0
"""What a training on a CPU wants of the machine: bfloat16 where the hardware multiplies it, attention by its products,
no denormal numbers, and memory that goes back."""

import contextlib
import ctypes
import sys
from collections.abc import Iterator

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel


def has_fast_bf16(use_cpu: bool) -> bool:
    """Whether the accelerator, or without one the CPU (AMX, AVX512-BF16), multiplies matrices of bfloat16 itself."""
    if torch.accelerator.is_available() and not use_cpu:
        return not torch.cuda.is_available() or torch.cuda.is_bf16_supported(including_emulation=False)
    found: dict = getattr(torch.cpu, "get_capabilities", dict)()  # older torch does not say
    return bool(found.get("amx_bf16") or found.get("avx512_bf16"))


def short_rows_attention(input_ids: torch.Tensor | None) -> contextlib.AbstractContextManager:
    """
    For a training step in bfloat16: attention by its two products and a softmax, if `(rows, tokens)` are on a CPU and
    have at most 128 tokens. The fused kernel of torch 2.13 takes up to four times as long there, forward and back.
    (It has no dropout: where a language model drops attentions, torch takes the products by itself.)
    """
    is_short = input_ids is not None and input_ids.device.type == "cpu" and input_ids.shape[1] <= 128
    return sdpa_kernel(SDPBackend.MATH) if is_short else contextlib.nullcontext()


def give_memory_back() -> None:
    """
    What is freed goes back to the system: now, and from now on, in this process, blocks of 8 MiB and more at once.
    Linux's glibc keeps blocks of up to 32 MiB between others that are in use, and those of batches of other lengths do
    not fit into them: bit by bit a training comes to hold more than it uses.
    """
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError):  # of another C library
            libc = ctypes.CDLL(None)
            libc.mallopt(-3, 1 << 23)  # M_MMAP_THRESHOLD
            libc.malloc_trim(0)


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
