"""The selective scan in plain torch: exact, in bounded memory, without a loop that allocates.

What makes it fast where the naive loop is not: the state lies as (n, d) with channels innermost, so that every
operation runs along memory; a chunk of steps is worked on in buffers that fit a cache and are used again; only the
state at each chunk's beginning is kept, and backward computes the chunk anew.
"""

from typing import Any

import torch
from torch import Tensor

# Steps worked on at once, and states (rows x n x d) of one step: together some 256 k numbers, or 1 MB a buffer.
_CHUNK = 32
_STATES = 8192


def scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """`selective_scan` of one precision without its options: u, delta (b, d, l); A (d, n); B, C (b, g, n, l)."""
    b, d, l = u.shape
    groups = max(B.shape[1], C.shape[1])
    # A group of channels of an utterance is a row of its own.
    rows = [x.reshape(b * groups, d // groups, l).transpose(1, 2).contiguous() for x in (u, delta)]
    a = A.T.unflatten(1, (groups, -1)).transpose(0, 1).contiguous()  # (g, n, d / g)
    a = a.expand(b, *a.shape).reshape(b * groups, A.shape[1], -1)
    bc = [x.expand(-1, groups, -1, -1).flatten(0, 1).transpose(1, 2).contiguous() for x in (B, C)]
    y: Tensor = _Scan.apply(*rows, a, *bc, torch.is_grad_enabled())
    return y.transpose(1, 2).reshape(b, d, l)


class _Scan(torch.autograd.Function):
    """Rows r of c channels: u, delta (r, l, c); A (r, n, c); B, C (r, l, n) -> (r, l, c)."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, keep: bool) -> Tensor:
        y = torch.empty_like(u)
        chunks = -(-u.shape[1] // _CHUNK)
        starts = u.new_zeros(chunks if keep else 1, *A.shape)
        x = delta * u
        for rows in _blocks(A):
            a = A[rows]
            decay, h = (u.new_empty(_CHUNK, *a.shape) for _ in range(2))
            for c in range(chunks):
                start = starts[c if keep else 0]
                at = slice(c * _CHUNK, (c + 1) * _CHUNK)
                step, xs, bs, cs = (v[rows, at].transpose(0, 1) for v in (delta, x, B, C))
                k = len(step)
                _states(step, xs, a, bs, start[rows], decay[:k], h[:k])
                y[rows, at] = torch.matmul(cs.unsqueeze(2), h[:k]).squeeze(2).transpose(0, 1)
                if c + 1 < chunks:
                    starts[c + 1 if keep else 0, rows] = h[-1]
        ctx.save_for_backward(u, delta, A, B, C, starts)
        return y

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        u, delta, A, B, C, starts = ctx.saved_tensors
        with torch.autocast(grad_y.device.type, enabled=False):
            return *_backward(u, delta, A, B, C, starts, grad_y.contiguous()), None


def _blocks(A: Tensor) -> list[slice]:
    """Rows that are worked on together."""
    size = max(1, _STATES // A[0].numel())
    return [slice(first, first + size) for first in range(0, len(A), size)]


def _states(step: Tensor, x: Tensor, A: Tensor, B: Tensor, start: Tensor, decay: Tensor, h: Tensor) -> None:
    """Fill decay = exp(Δ A) and h, both (k, r, n, c), from step, x (k, r, c), B (k, r, n) and the state before."""
    torch.mul(step.unsqueeze(2), A, out=decay).exp_()
    torch.mul(x.unsqueeze(2), B.unsqueeze(3), out=h)
    for state, factor in zip(h.unbind(), decay.unbind(), strict=True):
        start = state.addcmul_(factor, start)


def _backward(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, starts: Tensor, grad_y: Tensor
) -> tuple[Tensor, ...]:
    """With g_t = C_t ȳ_t + exp(Δ_{t+1} A) g_{t+1}, the gradient of h_t: sums of products of g, h and the decay."""
    grad_delta, grad_x, grad_B, grad_C = (torch.empty_like(v) for v in (delta, u, B, C))
    grad_A = torch.zeros(A.shape, dtype=A.dtype, device=A.device)
    x = delta * u
    for rows in _blocks(A):
        a, sum_a = A[rows], grad_A[rows]
        decay, g = (u.new_empty(_CHUNK, *a.shape) for _ in range(2))
        h = u.new_empty(_CHUNK + 1, *a.shape)
        carry, part = u.new_zeros(a.shape), u.new_empty(a.shape)
        for c in reversed(range(len(starts))):
            at = slice(c * _CHUNK, (c + 1) * _CHUNK)
            step, xs, bs, cs, gy = (v[rows, at].transpose(0, 1) for v in (delta, x, B, C, grad_y))
            k = len(step)
            h[0] = starts[c, rows]
            _states(step, xs, a, bs, h[0], decay[:k], h[1 : k + 1])
            torch.mul(gy.unsqueeze(2), cs.unsqueeze(3), out=g[:k])
            grads, factors = g[:k].unbind(), decay[:k].unbind()
            grads[-1].add_(carry)
            for t in range(k - 2, -1, -1):
                grads[t].addcmul_(factors[t + 1], grads[t + 1])
            torch.mul(factors[0], grads[0], out=carry)
            for grad, value in (
                (grad_C, torch.matmul(h[1 : k + 1], gy.unsqueeze(3)).squeeze(3)),
                (grad_B, torch.matmul(g[:k], xs.unsqueeze(3)).squeeze(3)),
                (grad_x, torch.matmul(bs.unsqueeze(2), g[:k]).squeeze(2)),
            ):
                grad[rows, at] = value.transpose(0, 1)
            exponent = decay[:k].mul_(h[:k]).mul_(g[:k])  # the gradient of Δ A
            part.zero_()  # a sum of sums: adding thousands of steps one by one would round as often
            for t, gradient in enumerate(exponent.unbind()):
                part.addcmul_(gradient, step[t].unsqueeze(1))
            sum_a.add_(part)
            grad_delta[rows, at] = exponent.mul_(a).sum(dim=2).transpose(0, 1)
    grad_delta.addcmul_(grad_x, u)
    return grad_x.mul_(delta), grad_delta, grad_A, grad_B, grad_C
