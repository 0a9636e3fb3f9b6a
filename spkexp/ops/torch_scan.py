"""The selective scan in plain torch: exact, in bounded memory, without a loop that allocates.

What makes it fast where the naive loop is not: the state lies as (n, d) with channels innermost, so that every
operation runs along memory; a chunk of steps is worked on in buffers that fit a cache and are used again; only the
state at each chunk's beginning is kept, and backward computes the chunk anew.
"""

from typing import Any

import torch
from torch import Tensor
from torch._higher_order_ops import scan as stepwise
from torch.autograd.function import once_differentiable

# Steps worked on at once, and states (rows x n x d) of one step. On a CPU together 256 k numbers, 1 MB a buffer; an
# accelerator wants all rows at once, up to buffers of 256 MB.
_CHUNK = 32
_STATES_CPU, _STATES = 8192, 2**21


def scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """`selective_scan` of one precision without its options: u, delta (b, d, l); A (d, n); B, C (b, g, n, l)."""
    b, d, l = u.shape
    groups = max(B.shape[1], C.shape[1])
    if torch.compiler.is_exporting():
        return _exported(u, delta, A, B, C, groups)
    # A group of channels of an utterance is a row of its own.
    rows = [x.reshape(b * groups, d // groups, l).transpose(1, 2).contiguous() for x in (u, delta)]
    a = A.T.unflatten(1, (groups, -1)).transpose(0, 1).contiguous()  # (g, n, d / g)
    a = a.expand(b, *a.shape).reshape(b * groups, A.shape[1], -1)
    bc = [x.expand(-1, groups, -1, -1).flatten(0, 1).transpose(1, 2).contiguous() for x in (B, C)]
    y: Tensor = _Scan.apply(*rows, a, *bc, torch.is_grad_enabled())
    return y.transpose(1, 2).reshape(b, d, l)


def _exported(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, groups: int) -> Tensor:
    """`scan` as one operation of an exported graph, whatever the number of steps: ONNX has it as `Scan`."""
    a = A.unflatten(0, (groups, -1))  # (g, d / g, n)

    def advance(h: Tensor, inputs: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """h (b, g, d / g, n); of one step Δ, Δ u (b, g, d / g) and B, C (b, 1 or g, n)."""
        step, x, b, c = inputs
        h = torch.exp(step.unsqueeze(3) * a) * h + x.unsqueeze(3) * b.unsqueeze(2)
        return h, (h * c.unsqueeze(2)).sum(dim=3)

    steps = [x.unflatten(1, (groups, -1)).permute(3, 0, 1, 2) for x in (delta, delta * u)]
    state = u.new_zeros(u.shape[0], *a.shape)
    _, y = stepwise(advance, state, (*steps, B.permute(3, 0, 1, 2), C.permute(3, 0, 1, 2)))
    return y.permute(1, 2, 3, 0).flatten(1, 2)


class _Scan(torch.autograd.Function):
    """Rows r of c channels: u, delta (r, l, c); A (r, n, c); B, C (r, l, n) -> (r, l, c)."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, keep: bool) -> Tensor:
        y = torch.empty_like(u)
        chunks = -(-u.shape[1] // _CHUNK)
        starts = u.new_zeros(chunks if keep else 1, *A.shape)
        for rows in _blocks(A):
            a = A[rows]
            decay, h = (_Steps(u.new_empty(_CHUNK, *a.shape)) for _ in range(2))
            for c in range(chunks):
                start = starts[c if keep else 0]
                at = slice(c * _CHUNK, (c + 1) * _CHUNK)
                step, us, bs, cs = (v[rows, at].transpose(0, 1) for v in (delta, u, B, C))
                k = len(step)
                _states(step, step * us, a, bs, start[rows], decay, h)
                y[rows, at] = torch.matmul(cs.unsqueeze(2), h.all[:k]).squeeze(2).transpose(0, 1)
                if c + 1 < chunks:
                    starts[c + 1 if keep else 0, rows] = h.each[-1]
        ctx.save_for_backward(u, delta, A, B, C, starts)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        u, delta, A, B, C, starts = ctx.saved_tensors
        with torch.autocast(grad_y.device.type, enabled=False):
            return *_backward(u, delta, A, B, C, starts, grad_y.contiguous()), None


def _blocks(A: Tensor) -> list[slice]:
    """Rows that are worked on together."""
    size = max(1, (_STATES_CPU if A.device.type == "cpu" else _STATES) // A[0].numel())
    return [slice(first, first + size) for first in range(0, len(A), size)]


class _Steps:
    """A buffer for some steps: all of them as one tensor, and each, since making a view costs half an operation."""

    def __init__(self, buffer: Tensor) -> None:
        self.all, self.each = buffer, buffer.unbind()


def _states(step: Tensor, x: Tensor, A: Tensor, B: Tensor, start: Tensor, decay: _Steps, h: _Steps) -> None:
    """Fill decay = exp(Δ A) and h, both (k, r, n, c), from step, x (k, r, c), B (k, r, n) and the state before."""
    k = len(step)
    torch.mul(step.unsqueeze(2), A, out=decay.all[:k]).exp_()
    torch.mul(x.unsqueeze(2), B.unsqueeze(3), out=h.all[:k])
    for state, factor in zip(h.each[:k], decay.each[:k], strict=True):
        start = state.addcmul_(factor, start)


def _backward(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, starts: Tensor, grad_y: Tensor
) -> tuple[Tensor, ...]:
    """With g_t = C_t ȳ_t + exp(Δ_{t+1} A) g_{t+1}, the gradient of h_t: sums of products of g, h and the decay."""
    grad_u, grad_delta, grad_B, grad_C = (torch.empty_like(v) for v in (u, delta, B, C))
    grad_A = torch.zeros(A.shape, dtype=A.dtype, device=A.device)
    for rows in _blocks(A):
        a, sum_a = A[rows], grad_A[rows]
        decay, g = (_Steps(u.new_empty(_CHUNK, *a.shape)) for _ in range(2))
        before = u.new_empty(_CHUNK + 1, *a.shape)  # the state before each step, and the last
        h = _Steps(before[1:])
        carry = u.new_zeros(a.shape)
        for c in reversed(range(len(starts))):
            at = slice(c * _CHUNK, (c + 1) * _CHUNK)
            step, us, bs, cs, gy = (v[rows, at].transpose(0, 1) for v in (delta, u, B, C, grad_y))
            k, xs = len(step), step * us
            before[0] = starts[c, rows]
            _states(step, xs, a, bs, before[0], decay, h)
            gs = torch.mul(gy.unsqueeze(2), cs.unsqueeze(3), out=g.all[:k])
            g.each[k - 1].add_(carry)
            for t in range(k - 2, -1, -1):
                g.each[t].addcmul_(decay.each[t + 1], g.each[t + 1])
            torch.mul(decay.each[0], g.each[0], out=carry)
            # Row vectors from the left: a batch of matrices times columns takes ten times as long.
            grad_x = torch.matmul(bs.unsqueeze(2), gs).squeeze(2)
            grad_C[rows, at] = torch.matmul(gy.unsqueeze(2), h.all[:k].mT).squeeze(2).transpose(0, 1)
            grad_B[rows, at] = torch.matmul(xs.unsqueeze(2), gs.mT).squeeze(2).transpose(0, 1)
            grad_u[rows, at] = (grad_x * step).transpose(0, 1)
            exponent = decay.all[:k].mul_(before[:k]).mul_(gs)  # the gradient of Δ A
            # A sum of sums: adding thousands of steps one by one would round as often.
            sum_a.add_(torch.mul(exponent, step.unsqueeze(2), out=gs).sum(dim=0))
            grad_delta[rows, at] = exponent.mul_(a).sum(dim=2).addcmul_(grad_x, us).transpose(0, 1)
    return grad_u, grad_delta, grad_A, grad_B, grad_C
