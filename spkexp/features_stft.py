"""Log-mel features of frames that are centred on every hop, as torch.stft has them: SpeechBrain's and ReDimNet's.

`features.LogMel` is Kaldi's, whose frames lie inside the signal; encoders trained on other front ends need their own.
Here a frame reaches beyond both ends of the utterance, the window is periodic, nothing is done frame by frame, and the
mel scale is 2595 log10(1 + f / 700), with triangles that are straight in Hz.

The shape letters: B utterances, L samples a frame, K = FFT size // 2 + 1 frequencies, M mel bins, T frames.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spkexp.features import fourier_matrix
from spkexp.types import Fraction, NonNegative, Positive, PositiveInt

# Deviations below this are those of a constant, whose rounding is no speech.
_DEVIATION_FLOOR = 1e-10
# Frames worked on at once: an hour of speech has 360,000, whose spectra would take 600 MB.
_BLOCK_FRAMES_CPU = 2048
_BLOCK_FRAMES = 65536


class CentredLogMel(nn.Module):
    """Log-mel filterbank energies of centred frames with per-utterance normalisation.

    Args:
        sample_rate: of the waveform, Hz.
        num_mels: mel bins M, the number of output channels.
        frame_length_ms: length of a frame, ms.
        frame_shift_ms: from the centre of one frame to that of the next, ms.
        fft_size: samples of the FFT, even and no fewer than those of a frame, which zeros surround.
        low_hz: lower edge of the first filter, Hz.
        high_hz: upper edge of the last filter, Hz; 0 is the Nyquist frequency.
        window: "hamming" or "hann", periodic.
        filters: "htk", from the centre of the filter before to that of the one after (torchaudio), or "symmetric",
            both sides as wide as the lower one (SpeechBrain).
        padding: what lies beyond the utterance: its mirror image ("reflect", torchaudio) or "zeros" (SpeechBrain).
        preemphasis: a in y[n] = x[n] - a x[n-1] over the whole utterance, with x[-1] = x[1]; 0 is none.
        logarithm: "decibel", 10 log10(max(x, floor)), or "natural", ln(x + floor).
        floor: least energy.
        top_db: with "decibel", what lies so far below the utterance's greatest value is raised to there; 0: nothing.
        normalise: per utterance and mel bin, over its own frames: "none", "mean" (subtract it) or "mean_variance"
            (and divide by the standard deviation, biased).
    """

    window: Tensor
    filters: Tensor

    def __init__(
        self,
        sample_rate: PositiveInt,
        num_mels: PositiveInt,
        frame_length_ms: Positive,
        frame_shift_ms: Positive,
        fft_size: PositiveInt,
        low_hz: NonNegative,
        high_hz: NonNegative,
        window: Literal["hamming", "hann"],
        filters: Literal["htk", "symmetric"],
        padding: Literal["reflect", "zeros"],
        preemphasis: Fraction,
        logarithm: Literal["decibel", "natural"],
        floor: Positive,
        top_db: NonNegative,
        normalise: Literal["none", "mean", "mean_variance"],
    ) -> None:
        super().__init__()
        self.sample_rate = sample_rate
        self.out_channels = num_mels
        self.frame_length = round(sample_rate * frame_length_ms / 1000)
        self.frame_shift = round(sample_rate * frame_shift_ms / 1000)
        if self.frame_shift < 1 or not 2 <= self.frame_length <= fft_size or fft_size % 2:
            raise ValueError(
                f"CentredLogMel: frame_length_ms={frame_length_ms} and frame_shift_ms={frame_shift_ms} are "
                f"{self.frame_length} and {self.frame_shift} samples at {sample_rate} Hz; a frame needs at least 2, a "
                f"shift 1, and fft_size={fft_size} must be even and no smaller than a frame"
            )
        self.fft_size = fft_size
        self.padding, self.preemphasis = padding, preemphasis
        self.logarithm, self.floor, self.top_db = logarithm, floor, top_db
        self.normalise = normalise
        make_window = torch.hamming_window if window == "hamming" else torch.hann_window
        self.register_buffer("window", make_window(self.frame_length), persistent=False)
        edges = (num_mels, fft_size, sample_rate, low_hz, high_hz or sample_rate / 2)
        self.register_buffer("filters", triangles(*edges, symmetric=filters == "symmetric"), persistent=False)

    def extra_repr(self) -> str:
        return (
            f"{self.sample_rate} Hz, {self.out_channels} mels, frames of {self.frame_length} samples centred on every "
            f"{self.frame_shift}th, normalise={self.normalise}"
        )

    def num_frames(self, lengths: Tensor) -> Tensor:
        """Frames of utterances of `lengths` samples: 1 + samples // shift."""
        return lengths // self.frame_shift + 1

    def forward(self, waveform: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Features of each utterance; what lies in a row behind its length has no influence on them.

        Args:
            waveform: (B, samples) float32 in [-1, 1].
            lengths: (B,) int64, samples of each utterance, on any device; on the CPU masks are skipped where
                every row is full.

        Returns:
            features (B, M, T) float32, exactly zero behind each utterance's last frame, and frame_lengths (B,),
            on the device of `lengths`.
        """
        frame_lengths = self.num_frames(lengths)
        known = lengths.device.type == "cpu" and not torch.compiler.is_exporting()
        ends = None if known and int(lengths.min()) == waveform.shape[1] else lengths.to(waveform.device)
        extended = self._extended(self._emphasised(waveform, ends), ends)
        frames = extended.unfold(1, self.frame_length, self.frame_shift)[:, : 1 + waveform.shape[1] // self.frame_shift]
        energies = self._energies(frames)
        if ends is None:
            return self._normalise(self._log(energies, None), None), frame_lengths
        position = torch.arange(energies.shape[2], device=energies.device)
        padding = (position >= self.num_frames(ends)[:, None]).unsqueeze(1)
        return self._normalise(self._log(energies, padding).masked_fill(padding, 0.0), padding), frame_lengths

    def _emphasised(self, waveform: Tensor, ends: Tensor | None) -> Tensor:
        """waveform (B, samples), zero behind each row's end (None: no row has such samples), pre-emphasised."""
        padding = None
        if ends is not None:
            padding = torch.arange(waveform.shape[1], device=waveform.device) >= ends[:, None]
            waveform = waveform.masked_fill(padding, 0.0)
        if not self.preemphasis:
            return waveform
        second = F.pad(waveform, (0, 1))[:, 1:2]  # zero where an utterance is a single sample
        waveform = waveform - self.preemphasis * torch.cat([second, waveform[:, :-1]], dim=1)
        return waveform if padding is None else waveform.masked_fill(padding, 0.0)

    def _extended(self, waveform: Tensor, ends: Tensor | None) -> Tensor:
        """What half a frame beyond both ends of each row hears: (B, samples) -> (B, samples + L), or one more."""
        # With zeros around it in the FFT a frame reaches so far to the left of its centre.
        amount = self.fft_size // 2 - (self.fft_size - self.frame_length) // 2
        if self.padding == "zeros":
            return F.pad(waveform, (amount, amount))
        samples = waveform.shape[1]
        if ends is None and samples > amount:
            return F.pad(waveform.unsqueeze(1), (amount, amount), mode="reflect").squeeze(1)
        # Mirroring about samples 0 and n-1 has the period 2 (n-1); the second half of a period runs backwards. A short
        # row goes back and forth as often as needed.
        last = (torch.full_like(waveform[:, 0], samples, dtype=torch.int64) if ends is None else ends)[:, None] - 1
        position = torch.arange(-amount, samples + amount, device=waveform.device)
        position = position.remainder((2 * last).clamp(min=1))
        return waveform.gather(1, torch.minimum(position, 2 * last - position).clamp(min=0))

    def _energies(self, frames: Tensor) -> Tensor:
        """Frames (B, T, L) -> mel energies (B, M, T), in blocks that bound the memory."""
        if torch.compiler.is_compiling():
            return self._block(frames)  # one graph for any number of frames
        size = max(1, (_BLOCK_FRAMES_CPU if frames.device.type == "cpu" else _BLOCK_FRAMES) // len(frames))
        return torch.cat([self._block(part) for part in frames.split(size, dim=1)], dim=2)

    def _block(self, frames: Tensor) -> Tensor:
        # Where a frame lies in the FFT is the spectrum's phase alone.
        windowed = frames * self.window
        if torch.compiler.is_exporting():
            spectrum = (windowed @ fourier_matrix(self.frame_length, self.fft_size).to(windowed)).unflatten(2, (-1, 2))
        else:
            spectrum = torch.view_as_real(torch.fft.rfft(windowed, n=self.fft_size))  # (B, T, K, 2)
        return (spectrum.square().sum(dim=3) @ self.filters.T).transpose(1, 2)

    def _log(self, energies: Tensor, padding: Tensor | None) -> Tensor:
        """Energies (B, M, T), of which those where padding (B, 1, T) is true do not count -> logarithms."""
        if self.logarithm == "natural":
            return (energies + self.floor).log()
        decibels = 10.0 * energies.clamp(min=self.floor).log10()
        if not self.top_db:
            return decibels
        counted = decibels if padding is None else decibels.masked_fill(padding, float("-inf"))
        return torch.maximum(decibels, counted.amax(dim=(1, 2), keepdim=True) - self.top_db)

    def _normalise(self, features: Tensor, padding: Tensor | None) -> Tensor:
        """features (B, M, T), zero where padding (B, 1, T) is true; None: no row has any."""
        if self.normalise == "none":
            return features
        count = features.shape[2] if padding is None else (~padding).sum(dim=2, keepdim=True)
        features = features - features.sum(dim=2, keepdim=True) / count
        if padding is not None:
            features = features.masked_fill(padding, 0.0)
        if self.normalise == "mean":
            return features
        variance = features.square().sum(dim=2, keepdim=True) / count
        return features / variance.clamp(min=_DEVIATION_FLOOR**2).sqrt()


def triangles(num_mels: int, fft_size: int, sample_rate: int, low_hz: float, high_hz: float, symmetric: bool) -> Tensor:
    """Triangular filters (num_mels, fft_size // 2 + 1) float32 with peak 1, straight in Hz, equally spaced in mel.

    mel(f) = 2595 log10(1 + f / 700). In float32 and in the order of torchaudio.functional.melscale_fbanks and of
    SpeechBrain, as the encoders were trained with. A narrow filter may lie between two frequencies and be empty.
    """
    if not low_hz < high_hz <= sample_rate / 2:
        raise ValueError(
            f"CentredLogMel: low_hz={low_hz} and high_hz={high_hz} must satisfy low_hz < high_hz <= {sample_rate / 2} "
            f"(half of sample_rate={sample_rate})"
        )
    low, high = (2595.0 * math.log10(1.0 + hz / 700.0) for hz in (low_hz, high_hz))
    edges = 700.0 * (10.0 ** (torch.linspace(low, high, num_mels + 2) / 2595.0) - 1.0)
    widths = edges.diff()
    frequencies = torch.linspace(0, sample_rate // 2, fft_size // 2 + 1)
    if symmetric:
        slope = (frequencies - edges[1:-1, None]) / widths[:-1, None]
        sides = slope + 1.0, -slope + 1.0
    else:
        slopes = edges[:, None] - frequencies
        sides = -slopes[:-2] / widths[:-1, None], slopes[2:] / widths[1:, None]
    return torch.minimum(*sides).clamp(min=0.0)
