"""The selective scan compiled for this CPU: scan_kernel.c, built on first use by the machine's C compiler.

A plain C file and ctypes rather than torch's extension builder: it compiles in a tenth of a second instead of half a
minute, needs no headers, and ctypes releases the interpreter's lock, so that threads share a batch.
"""

import atexit
import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.function import once_differentiable

from spkexp.ops import torch_scan
from spkexp.ops.backend import Unavailable

_SOURCE = Path(__file__).with_name("scan_kernel.c")
_FLAGS = ("-O3", "-fPIC", "-shared")


# States of a channel up to which the kernel's work space fits the stack of any thread; mamba-ssm has 256 at most.
_MAX_STATES = 128


def load() -> Callable[..., Tensor]:
    """The scan of `torch_scan.scan`'s arguments, in float32. Raises Unavailable without a C compiler."""
    library = _library()
    pointers, sizes = ctypes.c_void_p, ctypes.c_long
    library.scan_forward.argtypes = [pointers] * 7 + [sizes] * 4
    library.scan_backward.argtypes = [pointers] * 13 + [sizes] * 4

    def scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
        if A.shape[1] > _MAX_STATES:
            return torch_scan.scan(u, delta, A, B, C)
        groups = max(B.shape[1], C.shape[1])
        width = u.shape[1] // groups
        missing = -width % library.lanes()

        def whole(x: Tensor) -> Tensor:
            """Channels first to last, each group filled up with silent ones to whole vectors of the kernel."""
            x = x.transpose(-1, -2)
            if missing:
                x = F.pad(x.unflatten(-1, (groups, width)), (0, missing)).flatten(-2)
            return x.contiguous()

        bc = [x.expand(-1, groups, -1, -1).permute(0, 3, 1, 2).contiguous() for x in (B, C)]
        y: Tensor = _Scan.apply(library, torch.is_grad_enabled(), whole(u), whole(delta), whole(A), *bc)
        if missing:
            y = y.unflatten(-1, (groups, -1))[..., :width].flatten(-2)
        return y.transpose(1, 2)

    return scan


class _Scan(torch.autograd.Function):
    """u, delta (b, l, d); A (n, d); B, C (b, l, g, n), all float32 and contiguous -> (b, l, d)."""

    @staticmethod
    def forward(
        ctx: Any, library: ctypes.CDLL, keep: bool, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor
    ) -> Tensor:
        y = torch.empty_like(u)
        (b, l, d), n = u.shape, A.shape[0]
        states = u.new_empty(b, -(-l // library.chunk()), n * d) if keep else None
        _each_row(library.scan_forward, (u, delta, A, B, C, y, states), (l, d, B.shape[2], n), shared=A)
        ctx.library = library
        ctx.save_for_backward(u, delta, A, B, C, states)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        u, delta, A, B, C, states = ctx.saved_tensors
        (b, l, d), n = u.shape, A.shape[0]
        du, ddelta, dB, dC = (torch.empty_like(v) for v in (u, delta, B, C))
        dA, carry = (u.new_empty(b, n, d) for _ in range(2))
        tensors = (u, delta, A, B, C, states, grad_y.contiguous(), du, ddelta, dA, dB, dC, carry)
        _each_row(ctx.library.scan_backward, tensors, (l, d, B.shape[2], n), shared=A)
        return None, None, du, ddelta, dA.sum(dim=0), dB, dC


def _each_row(
    function: Callable[..., None], tensors: tuple[Tensor | None, ...], sizes: tuple[int, ...], shared: Tensor
) -> None:
    """Call `function` for each utterance, on as many threads as torch uses. What one computes is its own alone.

    Every tensor is given from that utterance's row on, `shared` as it is, None as a null pointer.
    """
    if isinstance(tensors[0], FakeTensor):  # sizes are asked for, not values
        return
    sizes_of_rows = [0 if x is None or x is shared else x.stride(0) * x.element_size() for x in tensors]
    addresses = [0 if x is None else x.data_ptr() for x in tensors]

    def call(row: int) -> None:
        function(*(address + row * size for address, size in zip(addresses, sizes_of_rows, strict=True)), *sizes)

    assert tensors[0] is not None
    rows = range(len(tensors[0]))
    threads = min(torch.get_num_threads(), len(rows))
    if threads <= 1:
        for row in rows:
            call(row)
    else:
        list(_threads(threads).map(call, rows))


@cache
def _threads(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, thread_name_prefix="spkexp-scan")


# A process that is forked inherits the pool without its threads.
os.register_at_fork(after_in_child=_threads.cache_clear)


def _library() -> ctypes.CDLL:
    """The compiled kernel, from the cache if it is there. Several processes may build it at once."""
    words = shlex.split(os.environ.get("CC") or next(filter(shutil.which, ("cc", "gcc", "clang")), ""))
    if not words or shutil.which(words[0]) is None:
        looked_for = words[0] if words else "cc, gcc, clang"
        raise Unavailable(f"no C compiler was found ({looked_for}); install gcc or clang, or set CC")
    # -march=native makes code for this very kind of CPU, and a home folder may be shared by several.
    identity = (_SOURCE.read_text(encoding="utf-8"), words, *_FLAGS, platform.machine(), _cpu_features())
    name = f"scan-{hashlib.sha256(repr(identity).encode()).hexdigest()[:16]}.so"
    problem: Exception | None = None
    for folder in _folders():
        library = folder / name
        for _ in range(2):  # what is there may be broken: then it is built anew
            try:
                folder.mkdir(parents=True, exist_ok=True)
                if not library.is_file():
                    _compile(words, library)
                return ctypes.CDLL(str(library))
            except OSError as error:
                problem = error
                with suppress(OSError):
                    library.unlink()
    raise Unavailable(f"the compiled kernel can be kept nowhere ({problem}); set XDG_CACHE_HOME to a writable folder")


def _folders() -> Iterator[Path]:
    """Where the library may lie: the user's cache; else, for this process alone, a temporary folder."""
    with suppress(RuntimeError):  # a user without a home
        yield Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "spkexp"
    folder = Path(tempfile.mkdtemp(prefix="spkexp-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    yield folder


def _compile(compiler: list[str], library: Path) -> None:
    descriptor, temporary = tempfile.mkstemp(dir=library.parent, suffix=".so")
    os.close(descriptor)
    try:
        for tuning in (["-march=native"], ["-mcpu=native"], []):  # not every compiler knows each
            command = [*compiler, *_FLAGS, *tuning, "-o", temporary, str(_SOURCE)]
            result = subprocess.run(command, capture_output=True, text=True, check=False)
            if result.returncode == 0:
                os.replace(temporary, library)
                return
        raise Unavailable(f"{compiler[0]} could not compile {_SOURCE.name}: {result.stderr.strip()[:500]}")
    finally:
        Path(temporary).unlink(missing_ok=True)


def _cpu_features() -> str:
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return platform.processor()
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
