"""LogMel of a batch against torchaudio's fbank utterance by utterance, on one CPU thread.

    OMP_NUM_THREADS=1 python benchmarks/features.py [--repeats 15] [--output FILE]

Both give the same features, mean-normalised, of 32 utterances of 2 s. The two alternate; medians are printed.
"""

import time
from collections.abc import Callable
from statistics import median

import torch
from common import parser, write
from torch import Tensor
from torchaudio.compliance.kaldi import fbank

from spkexp.features import LogMel

BATCH, SECONDS, SAMPLE_RATE = 32, 2, 16000


def per_utterance(waveform: Tensor, num_mels: int) -> Tensor:
    """(B, samples) -> (B, M, T) by one call of fbank for each row."""
    rows = [fbank(row[None], num_mel_bins=num_mels, window_type="hamming") for row in waveform]
    return torch.stack([(row - row.mean(dim=0)).T for row in rows])


def seconds(work: Callable[[], Tensor]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure(num_mels: int, repeats: int) -> dict[str, float]:
    waveform = torch.randn(BATCH, SECONDS * SAMPLE_RATE, generator=torch.Generator().manual_seed(0)) * 0.1
    lengths = torch.full((BATCH,), waveform.shape[1])
    log_mel = LogMel(
        sample_rate=SAMPLE_RATE,
        num_mels=num_mels,
        frame_length_ms=25.0,
        frame_shift_ms=10.0,
        low_hz=20.0,
        high_hz=0.0,
        window="hamming",
        preemphasis=0.97,
        scale=1.0,
        normalise="mean",
    )
    difference = float((log_mel(waveform, lengths)[0] - per_utterance(waveform, num_mels)).abs().max())
    ours, theirs = [], []
    for _ in range(repeats + 2):
        theirs.append(seconds(lambda: per_utterance(waveform, num_mels)))
        ours.append(seconds(lambda: log_mel(waveform, lengths)[0]))
    ours, theirs = ours[2:], theirs[2:]  # the first two warm up
    return {
        "num_mels": num_mels,
        "fbank_ms": round(1e3 * median(theirs), 2),
        "logmel_ms": round(1e3 * median(ours), 2),
        "times_faster": round(median(theirs) / median(ours), 2),
        "largest_difference": difference,
    }


def main() -> None:
    arguments = parser(__doc__, "features")
    arguments.add_argument("--repeats", type=int, default=15, help="measurements of each, after two to warm up")
    given = arguments.parse_args()
    torch.set_num_threads(1)
    write(
        given.output,
        "log-mel of 32 x 2 s, mean-normalised, one CPU thread",
        {
            "asked_times_faster": 3.0,
            "repeats": given.repeats,
            "results": [measure(num_mels, given.repeats) for num_mels in (23, 72, 80)],
        },
        "torch",
        "torchaudio",
    )


if __name__ == "__main__":
    main()
