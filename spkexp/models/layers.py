"""Layers shared by the frame-level encoders, all of which keep padding out of the valid frames.

Shapes: B utterances, C channels, T frames. `lengths` is (B,) int64 on the device of the activations, the valid
frames of each row, or None where every row is full. None is the training case and costs nothing: no mask is made.
What the frames behind a row's length hold is arbitrary between layers; each layer ignores it on its way in.
"""

import functools
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spkexp.types import Fraction, PositiveInt

Padding = Literal["reflect", "zeros"]
# A layer of an encoder's stack: its modules in the order that forward calls them, and parameters that lie beside them.
# Every encoder lists its own by a property `layers_from_input`, the first to hear the input first. What it leaves out
# is the front end, below all of them; `spkexp.parameter_groups` counts by it.
Layer = tuple[nn.Module | nn.Parameter, ...]


def frame_mask(lengths: Tensor, num_frames: int) -> Tensor:
    """(B, 1, T) bool, true at the valid frames."""
    return (torch.arange(num_frames, device=lengths.device) < lengths[:, None]).unsqueeze(1)


def zero_padding(x: Tensor, lengths: Tensor | None) -> Tensor:
    """x (B, ..., T) with zeros behind each row's valid frames; x itself where every row is full."""
    if lengths is None:
        return x
    mask = frame_mask(lengths, x.shape[-1])
    return x.masked_fill(~mask.view(x.shape[0], *[1] * (x.ndim - 2), x.shape[-1]), 0.0)


def innermost_channels(channels: int) -> bool:
    """Whether a 2-D network whose convolutions have multiples of `channels` is to have its channels innermost.

    It is the layout that CPUs and tensor cores work on without reordering, a third faster in training on a CPU. Not so
    for narrow networks: torch 2.11 corrupts memory in their backward pass on a CPU.
    """
    return channels % 16 == 0


def as_image(features: Tensor, channels: int) -> Tensor:
    """(B, F, T) -> (B, 1, F, T) for a network with multiples of `channels`, which decide on its layout.

    A convolution's output lies in memory as its input does, and so does all that follows. (Weights in that layout
    would do as much, but gradients of another layout than their parameter's cost a copy.)
    """
    if innermost_channels(channels):
        return features.unsqueeze(3).permute(0, 3, 1, 2)  # torch.channels_last
    return features.unsqueeze(1)


def strided_lengths(lengths: Tensor | None, kernel_size: int, stride: int, padding: int) -> Tensor | None:
    """Frames that a convolution over zero-padded frames leaves of `lengths`, at least one."""
    if lengths is None:
        return None
    return ((lengths + 2 * padding - kernel_size).div(stride, rounding_mode="floor") + 1).clamp(min=1)


def frame_mean(x: Tensor, lengths: Tensor | None) -> Tensor:
    """Mean over the valid frames, accumulated in at least float32: (B, C, T) -> (B, C)."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    if lengths is None:
        return x.mean(dim=2, dtype=dtype)
    return zero_padding(x, lengths).sum(dim=2, dtype=dtype) / lengths[:, None]


def max_pool(x: Tensor, size: int) -> Tensor:
    """The greatest of every `size` frames, of which the last may be left over: (B, C, T) -> (B, C, T // size)."""
    if not torch.compiler.is_exporting():
        return F.max_pool1d(x, size)
    # In a graph for any T: of max_pool1d torch.export fixes T, and of views what it is a multiple of.
    first = size * torch.arange(x.shape[2] // size, device=x.device)
    return functools.reduce(torch.maximum, [x.index_select(2, first + i) for i in range(size)])


def pad_frames(x: Tensor, lengths: Tensor | None, amount: int, padding: Padding) -> Tensor:
    """Extend every row by `amount` frames on both sides of its valid part: (B, C, T) -> (B, C, T + 2 amount).

    "reflect" mirrors about the first and the last valid frame, without repeating it, as often as needed: a row
    shorter than `amount` goes back and forth, and a single frame is repeated.
    """
    num_frames = x.shape[2]
    if padding == "zeros":
        return F.pad(zero_padding(x, lengths), (amount, amount))
    if lengths is None:
        if num_frames > amount:
            return F.pad(x, (amount, amount), mode="reflect")
        lengths = torch.full((x.shape[0],), num_frames, device=x.device)
    # Mirroring about frames 0 and n-1 has the period 2 (n-1); the second half of a period runs backwards.
    last = (lengths - 1)[:, None]
    position = torch.arange(-amount, num_frames + amount, device=x.device)
    position = position.remainder((2 * last).clamp(min=1))
    position = torch.minimum(position, 2 * last - position).clamp(min=0)
    return x.gather(2, position.unsqueeze(1).expand(-1, x.shape[1], -1))


class TDNN(nn.Module):
    """Convolution over frames, (leaky) ReLU, batch normalisation: (B, C, T) -> (B, C', T).

    Args:
        in_channels: C.
        out_channels: C'.
        kernel_size: frames, odd, so that the number of frames stays.
        dilation: frames from one tap of the kernel to the next.
        padding: what the kernel sees beyond an utterance: its mirror image ("reflect") or "zeros".
        negative_slope: of the leaky ReLU; 0 is the ReLU.
        norm: whether batch normalisation follows. In training its statistics are those of valid frames.
    """

    def __init__(
        self,
        in_channels: PositiveInt,
        out_channels: PositiveInt,
        kernel_size: PositiveInt,
        dilation: PositiveInt,
        padding: Padding,
        negative_slope: Fraction,
        norm: bool,
    ) -> None:
        super().__init__()
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size={kernel_size}: an odd number keeps the number of frames")
        self.conv = nn.Conv1d(in_channels, out_channels, kernel_size, dilation=dilation)
        self.padding: Padding = padding
        self.amount = dilation * (kernel_size - 1) // 2
        self.negative_slope = negative_slope
        self.norm = nn.BatchNorm1d(out_channels) if norm else None

    def forward(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        if self.amount:
            x = pad_frames(x, lengths, self.amount, self.padding)
        x = self.conv(x)
        # In place: neither the convolution nor the batch normalisation needs the value before it.
        x = F.leaky_relu_(x, self.negative_slope) if self.negative_slope else F.relu_(x)
        return x if self.norm is None else norm_frames(self.norm, x, lengths)


def norm_frames(norm: nn.Module, x: Tensor, lengths: Tensor | None) -> Tensor:
    """Batch normalisation of (B, C, T) or (B, C, F, T) whose statistics, in training, are those of valid frames."""
    if lengths is None or not norm.training:
        return norm(x)
    mask = frame_mask(lengths, x.shape[-1]).squeeze(1)
    frames = x.movedim(-1, 1)  # (B, T, C) or (B, T, C, F)
    normalised = frames.new_zeros(frames.shape)
    valid = norm(frames[mask].unsqueeze(-1)).squeeze(-1)  # each frame an item of its own
    normalised[mask] = valid.to(normalised.dtype)
    return normalised.movedim(1, -1)


def check_layers(name: str, **lists: list[int]) -> None:
    """Raise ValueError unless the lists, one entry a layer, are equally long and not empty."""
    sizes = {key: len(value) for key, value in lists.items()}
    if len(set(sizes.values())) != 1 or 0 in sizes.values():
        counts = ", ".join(f"{key} has {size}" for key, size in sizes.items())
        raise ValueError(f"{name}: {counts}; they need one entry for each layer")
