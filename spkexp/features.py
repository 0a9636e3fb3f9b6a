"""What an encoder hears: log-mel features of a batch of waveforms, equal to Kaldi's for every utterance in it, or
the waveforms themselves.

`LogMel` gives what `compute-fbank-feats` (and its port, `torchaudio.compliance.kaldi.fbank`) gives for each utterance
alone, without dither and energy: frames that lie fully inside the signal, DC removed and pre-emphasised frame
by frame, power spectrum, triangular mel filters, natural logarithm.

The shape letters: B utterances, L samples a frame, K = FFT size // 2 + 1 frequencies, M mel bins, T frames.
"""

import itertools
import math
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spkexp.types import Fraction, NonNegative, Positive, PositiveInt

# Kaldi floors mel energies at std::numeric_limits<float>::epsilon() before the logarithm.
_ENERGY_FLOOR = torch.finfo(torch.float32).eps
# Deviations below this are those of a constant (one frame, digital silence), whose rounding is 1e-6.
_DEVIATION_FLOOR = 1e-3
# The same for a waveform in [-1, 1]: a fraction of the least step of 16-bit audio.
_SILENCE = 1e-6
# Frames worked on at once. On a CPU a block of 512 stays in the second-level cache; an accelerator wants large ones,
# and a limit all the same: an hour of speech has 360,000 frames, whose spectra would take 750 MB.
_BLOCK_FRAMES_CPU = 512
_BLOCK_FRAMES = 65536
# Mel filters multiplied at once: neighbours share few frequencies, so small groups skip the zeros of the matrix.
_MELS_PER_GROUP = 8


class LogMel(nn.Module):
    """Kaldi-compatible log-mel filterbank energies with per-utterance normalisation.

    Args:
        sample_rate: of the waveform, Hz.
        num_mels: mel bins M, the number of output channels.
        frame_length_ms: length of a frame, ms (Kaldi: 25). The FFT takes the next power of two of its samples.
        frame_shift_ms: from one frame to the next, ms (Kaldi: 10).
        low_hz: lower edge of the first filter, Hz (Kaldi: 20).
        high_hz: upper edge of the last filter, Hz; 0 is the Nyquist frequency.
        window: "povey" (Kaldi's own, hann ** 0.85), "hamming" (as WeSpeaker) or "hann"; all symmetric.
        preemphasis: a in y[n] = x[n] - a x[n-1]; the first sample of a frame is its own predecessor (Kaldi: 0.97).
        scale: what a waveform in [-1, 1] is multiplied by; 32768 gives Kaldi's 16-bit range. It shifts the log
            energies by 2 ln(scale) and lifts them above the floor.
        normalise: per utterance and mel bin, over its own frames: "none", "mean" (subtract it) or "mean_variance"
            (and divide by the standard deviation, biased as in Kaldi's apply-cmvn).
    """

    window: Tensor
    filters: Tensor

    def __init__(
        self,
        sample_rate: PositiveInt,
        num_mels: PositiveInt,
        frame_length_ms: Positive,
        frame_shift_ms: Positive,
        low_hz: NonNegative,
        high_hz: NonNegative,
        window: Literal["povey", "hamming", "hann"],
        preemphasis: Fraction,
        scale: Positive,
        normalise: Literal["none", "mean", "mean_variance"],
    ) -> None:
        super().__init__()
        self.sample_rate = sample_rate
        self.out_channels = num_mels
        self.frame_length = int(sample_rate * frame_length_ms / 1000)
        self.frame_shift = int(sample_rate * frame_shift_ms / 1000)
        if self.frame_length < 2 or self.frame_shift < 1:
            raise ValueError(
                f"LogMel: frame_length_ms={frame_length_ms} and frame_shift_ms={frame_shift_ms} are "
                f"{self.frame_length} and {self.frame_shift} samples at {sample_rate} Hz; at least 2 and 1 are needed"
            )
        self.fft_size = 1 << (self.frame_length - 1).bit_length()
        self.preemphasis = preemphasis
        self.normalise = normalise
        # Scaling commutes with every step up to the power spectrum, so the window carries it at no cost.
        self.register_buffer("window", make_window(window, self.frame_length) * scale, persistent=False)
        filters = mel_filters(num_mels, self.fft_size, sample_rate, low_hz, high_hz or sample_rate / 2)
        # Every weight twice: for the square of the real and of the imaginary part, which lie side by side.
        self.register_buffer("filters", filters.repeat_interleave(2, dim=1), persistent=False)  # (M, 2 K)
        self._groups: list[tuple[int, int, int, int]] = []  # rows and columns of `filters`: first, end, first, end
        for first in range(0, num_mels, _MELS_PER_GROUP):
            last = min(first + _MELS_PER_GROUP, num_mels)
            used = filters[first:last].sum(dim=0).nonzero()
            self._groups.append((first, last, 2 * int(used[0]), 2 * int(used[-1]) + 2))

    def extra_repr(self) -> str:
        return (
            f"{self.sample_rate} Hz, {self.out_channels} mels, frames of {self.frame_length} samples every "
            f"{self.frame_shift}, normalise={self.normalise}"
        )

    def num_frames(self, lengths: Tensor) -> Tensor:
        """Frames of utterances of `lengths` samples: 1 + (samples - L) // shift, and one for anything shorter."""
        return (lengths - self.frame_length).clamp(min=0) // self.frame_shift + 1

    def forward(self, waveform: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Features of each utterance; what lies in a row behind its length has no influence on them.

        Args:
            waveform: (B, samples) float32 in [-1, 1].
            lengths: (B,) int64, samples of each utterance, on any device; on the CPU masks are skipped where
                every row is full. An utterance shorter than a frame is padded with zeros to one.

        Returns:
            features (B, M, T) float32, exactly zero behind each utterance's last frame, and frame_lengths (B,),
            on the device of `lengths`.
        """
        frame_lengths = self.num_frames(lengths)
        known = lengths.device.type == "cpu" and not torch.compiler.is_exporting()
        if not known or int(lengths.min()) < self.frame_length:
            # Only frame 0 of such a row can reach behind its end: other rows have whole frames alone.
            position = torch.arange(waveform.shape[1], device=waveform.device)
            waveform = waveform.masked_fill(position >= lengths.to(waveform.device, non_blocking=True)[:, None], 0.0)
        if waveform.shape[1] < self.frame_length:
            waveform = F.pad(waveform, (0, self.frame_length - waveform.shape[1]))
        features = self._log_mel(waveform.unfold(1, self.frame_length, self.frame_shift))
        if known and int(frame_lengths.min()) == features.shape[2]:
            return self._normalise(features, None), frame_lengths
        position = torch.arange(features.shape[2], device=features.device)
        padding = (position >= frame_lengths.to(features.device, non_blocking=True)[:, None]).unsqueeze(1)
        return self._normalise(features.masked_fill(padding, 0.0), padding), frame_lengths

    def _normalise(self, features: Tensor, padding: Tensor | None) -> Tensor:
        """features (B, M, T), zero where padding (B, 1, T) is true; None: no row has any."""
        if self.normalise == "none":
            return features
        count = features.shape[2] if padding is None else (~padding).sum(dim=2, keepdim=True)
        features -= features.sum(dim=2, keepdim=True) / count
        if padding is not None:
            features.masked_fill_(padding, 0.0)
        if self.normalise == "mean":
            return features
        deviation = (features.square().sum(dim=2, keepdim=True) / count).clamp(min=_DEVIATION_FLOOR**2).sqrt()
        return features / deviation

    def _log_mel(self, frames: Tensor) -> Tensor:
        """Frames (B, T, L) -> log energies (B, M, T), in blocks that bound the memory."""
        batch, total, _ = frames.shape
        if torch.compiler.is_compiling():
            return self._block(frames)  # one graph for any number of frames
        if frames.device.type == "cpu" and not (torch.is_grad_enabled() and frames.requires_grad):
            return self._blocks_in_place(frames)
        size = max(1, _BLOCK_FRAMES // batch)
        return torch.cat([self._block(frames[:, i : i + size]) for i in range(0, total, size)], dim=2)

    def _block(self, frames: Tensor) -> Tensor:
        """Frames (B, T, L) -> log energies (B, M, T), one operation after the other.

        The order of the operations is Kaldi's and torchaudio's, deliberately. Folding DC removal, pre-emphasis and
        window into one pass over the waveform is exact algebra and saves a fifth of the time, but it rounds
        differently: in float32 the weakest bins then differ from Kaldi's by 1e-3 instead of 1e-6.
        """
        frames = frames - frames.mean(dim=2, keepdim=True)
        emphasis = frames * self.preemphasis
        frames = frames - torch.cat([emphasis[..., :1], emphasis[..., :-1]], dim=2)
        windowed = frames * self.window
        if torch.compiler.is_exporting():
            spectrum = windowed @ fourier_matrix(self.frame_length, self.fft_size)
        else:
            spectrum = torch.view_as_real(torch.fft.rfft(windowed, n=self.fft_size)).flatten(2)  # (B, T, 2 K)
        return (spectrum.square() @ self.filters.T).clamp(min=_ENERGY_FLOOR).log().transpose(1, 2)

    def _blocks_in_place(self, frames: Tensor) -> Tensor:
        """`_block` a few utterances, or a part of one, at a time in buffers made once: for speed on a CPU, no autograd.

        Each group of filters touches only its own frequencies.
        """
        batch, total, length = frames.shape
        out = frames.new_empty(batch, self.out_channels, total)
        size = min(total, _BLOCK_FRAMES_CPU)
        rows = min(batch, max(1, _BLOCK_FRAMES_CPU // total))
        shape: torch.Size | None = None
        for row, start in itertools.product(range(0, batch, rows), range(0, total, size)):
            block = frames[row : row + rows, start : start + size]
            if block.shape != shape:  # the first block, and at the ends
                shape = block.shape
                padded = frames.new_zeros(*shape[:2], self.fft_size)
                spectrum = padded.new_empty(*shape[:2], self.fft_size // 2 + 1, dtype=torch.complex64)
                squares = torch.view_as_real(spectrum)
                # Centred frames are done with when the spectrum is written: they share its memory.
                centred = squares.view(-1)[: shape.numel()].view(shape)
                emphasised = padded[..., :length]
                shifts = [(centred[..., :-1], emphasised[..., 1:]), (centred[..., :1], emphasised[..., :1])]
                energies = frames.new_empty(self.out_channels, shape[0] * shape[1])
                by_utterance = energies.view(-1, *shape[:2]).transpose(0, 1)
                columns = squares.view(shape[0] * shape[1], -1).T
                products = [
                    (self.filters[first:last, low:high], columns[low:high], energies[first:last])
                    for first, last, low, high in self._groups
                ]
            torch.sub(block, block.mean(dim=2, keepdim=True), out=centred)
            for predecessor, here in shifts:
                torch.mul(predecessor, self.preemphasis, out=here)
            torch.sub(centred, emphasised, out=emphasised)
            emphasised.mul_(self.window)
            torch.fft.rfft(padded, out=spectrum)
            torch.mul(squares, squares, out=squares)
            for weights, used, result in products:
                torch.mm(weights, used, out=result)
            energies.clamp_(min=_ENERGY_FLOOR).log_()
            out[row : row + rows, :, start : start + size] = by_utterance
        return out


def make_window(name: Literal["povey", "hamming", "hann"], length: int) -> Tensor:
    """Kaldi's window functions (feature-window.cc), (length,) float32, symmetric."""
    if name == "hamming":
        return torch.hamming_window(length, periodic=False)
    hann = torch.hann_window(length, periodic=False)
    return hann.pow(0.85) if name == "povey" else hann


def fourier_matrix(length: int, fft_size: int) -> Tensor:
    """What frames of `length` samples are multiplied by for real and imaginary parts, in turn: (length, 2 K) float32.

    An exported graph transforms so: rounded once it is more exact than onnxruntime's DFT, and four times faster.
    """
    # By numpy: the graph then holds the numbers, not how they are made.
    angles = 2 * np.pi / fft_size * np.outer(np.arange(length), np.arange(fft_size // 2 + 1))
    parts = np.stack([np.cos(angles), -np.sin(angles)], axis=2)
    return torch.from_numpy(parts.reshape(length, -1).astype(np.float32))


def mel_filters(num_mels: int, fft_size: int, sample_rate: int, low_hz: float, high_hz: float) -> Tensor:
    """Kaldi's triangles (mel-computations.cc): they overlap by half and are straight in mel, not in Hz.

    mel(f) = 1127 ln(1 + f / 700). Returns (num_mels, fft_size // 2 + 1) float32, each triangle with peak 1. The Nyquist
    frequency itself belongs to none, as in Kaldi.
    """
    if not low_hz < high_hz <= sample_rate / 2:
        raise ValueError(
            f"LogMel: low_hz={low_hz} and high_hz={high_hz} must satisfy low_hz < high_hz <= {sample_rate / 2} "
            f"(half of sample_rate={sample_rate})"
        )
    low, high = (1127.0 * math.log1p(hz / 700.0) for hz in (low_hz, high_hz))
    delta = (high - low) / (num_mels + 1)
    # In float32 and in Kaldi's order: near the foot of a triangle the rounding is 1e-4 of the weight.
    left = low + torch.arange(num_mels)[:, None] * delta
    centre = low + (torch.arange(num_mels)[:, None] + 1.0) * delta
    right = low + (torch.arange(num_mels)[:, None] + 2.0) * delta
    mels = 1127.0 * (1.0 + sample_rate / fft_size * torch.arange(fft_size // 2 + 1) / 700.0).log()
    filters = torch.minimum((mels - left) / (centre - left), (right - mels) / (right - centre)).clamp(min=0.0)
    filters[:, -1] = 0.0
    empty = (filters.sum(dim=1) == 0).nonzero().flatten().tolist()
    if empty:
        raise ValueError(
            f"LogMel: mel bin {empty[0]} of num_mels={num_mels} lies between two frequencies of the FFT of {fft_size} "
            f"and would always be empty; use fewer num_mels or a longer frame_length_ms"
        )
    return filters


class Waveform(nn.Module):
    """The waveform itself, for encoders that begin with a filterbank of their own: (B, samples) -> (B, 1, samples).

    Args:
        sample_rate: of the waveform, Hz.
        normalise: per utterance, over its own samples: "none", "mean" (subtract it) or "mean_variance" (and divide by
            the standard deviation, biased).
    """

    def __init__(self, sample_rate: PositiveInt, normalise: Literal["none", "mean", "mean_variance"]) -> None:
        super().__init__()
        self.sample_rate = sample_rate
        self.out_channels = 1
        self.normalise = normalise

    def forward(self, waveform: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """waveform (B, samples) and lengths (B,), in samples, -> (B, 1, samples), zero behind each length; lengths."""
        count = lengths.to(waveform.device, non_blocking=True)[:, None]
        padding = torch.arange(waveform.shape[1], device=waveform.device) >= count
        x = waveform.masked_fill(padding, 0.0)
        if self.normalise != "none":
            x = (x - x.sum(dim=1, keepdim=True) / count).masked_fill(padding, 0.0)
            if self.normalise == "mean_variance":
                deviation = (x.square().sum(dim=1, keepdim=True) / count).sqrt()
                x = x / deviation.clamp(min=_SILENCE)
        return x.unsqueeze(1), lengths
