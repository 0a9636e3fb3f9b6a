"""CPU time of augmented crops per utterance of 2 s, one thread, batches of 32; beside SpeechBrain in the same run.

    OMP_NUM_THREADS=1 python benchmarks/augment.py [--repeats 7] [--output FILE]

Both read a random crop of real speech (16-bit wav, page cache), change its speed (.9, 1 or 1.1), convolve it with a
recorded impulse response and add recorded noise at 0 to 15 dB, every row. spkexp reads noise and responses from their
files each time, as it does with a bank too large for memory, and draws everything for each row; SpeechBrain draws one
speed for a batch, and decodes noise and response from files too. `times_16` is what 16 such cores would do in a second.
Then each augmentation alone, on a batch that is there already, and crops read straight from m4a (AAC, 16 kHz).
"""

import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from statistics import median
from typing import Any

import av
import numpy as np
import polars as pl
import soundfile
import torch
from common import parser, write
from omegaconf import OmegaConf
from speechbrain.augment.augmenter import Augmenter
from speechbrain.augment.time_domain import AddNoise, AddReverb, SpeedPerturb
from speechbrain.dataio import audio_io

from spkexp import build
from spkexp.allocator import keep_freed_memory
from spkexp.augment.augmentation import Material, Signal
from spkexp.augment.chain import Sequence
from spkexp.compose import compose_config
from spkexp.counter import item_keys
from spkexp.data.dataset import Crops, Reading
from spkexp.data.utterances import Utterances

SHARED = Path(__file__).resolve().parents[2] / "shared/data"
BATCH, SAMPLES, BATCHES = 32, 32_000, 12


def make(folder: Path) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Speech as wav and as m4a, noises and impulse responses as wav; the tables of wav and of m4a utterances."""
    tables: dict[str, list[tuple[str, str, float]]] = {"wav": [], "m4a": []}
    for source in sorted(SHARED.glob("LibriSpeech/test-other/*/*/*.flac")):
        wave, rate = soundfile.read(source, dtype="int16")
        if len(wave) > 40_000:
            soundfile.write(folder / f"{source.stem}.wav", wave, rate, subtype="PCM_16")
            write_m4a(folder / f"{source.stem}.m4a", wave)
            for suffix, rows in tables.items():
                rows.append((source.stem, str(folder / f"{source.stem}.{suffix}"), len(wave) / rate))
    for kind in ("noise", "rir"):
        (folder / kind).mkdir()
        for source in sorted((SHARED / kind).glob("*.flac")):
            wave, rate = soundfile.read(source, dtype="int16")
            soundfile.write(folder / kind / f"{source.stem}.wav", wave, rate, subtype="PCM_16")
        files = sorted((folder / kind).iterdir())
        lengths = [soundfile.info(file).duration for file in files]
        rows = {"ID": [f.stem for f in files], "duration": lengths, "wav": [str(f) for f in files]}
        pl.DataFrame(rows).with_columns(wav_format=pl.lit("wav"), wav_opts=pl.lit("")).write_csv(folder / f"{kind}.csv")
    frames = [pl.DataFrame(rows, ["id", "path", "duration"], orient="row") for rows in tables.values()]
    first, second = (frame.with_columns(speaker=pl.col("id").str.split("-").list.first()) for frame in frames)
    return first, second


def write_m4a(file: Path, wave: np.ndarray) -> None:
    with av.open(file, "w") as container:
        stream = container.add_stream("aac", rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(wave[None], format="s16", layout="mono")
        frame.sample_rate, frame.time_base = 16_000, Fraction(1, 16_000)
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def ours(folder: Path, table: pl.DataFrame) -> Callable[[int], Any]:
    steps = "augment.waveform.steps"
    rooms = f"{steps}.reverb.choices.simulated.source"
    banks = [f"augment.musan='{folder}'", f"augment.rirs='{folder}/rir'", f"{rooms}.include=['**']"]
    always = [f"{steps}.reverb.probability=1", f"{steps}.noise.probability=1"]
    kinds = [f"{steps}.{part}=null" for part in ("noise.kinds.babble", "noise.kinds.music", "reverb.choices.measured")]
    files = [f"{rooms}.memory_mb=0", f"{steps}.noise.kinds.noise.source.memory_mb=0"]
    cfg = compose_config(["augment=noise_reverb", *banks, *always, *kinds, *files])
    augmentation = build.augmentation(cfg.augment.waveform, "augment.waveform", 16_000)
    utterances = Utterances.of(table, "speaker").with_speed_copies([0.9, 1.1], own_labels=True)
    crops = Crops(utterances, Reading(16_000, False, False), 2.0, "wrap", 0, one_copy=True, augmentation=augmentation)

    def step(number: int) -> torch.Tensor:
        batch = crops.__getitems__([(number, item % utterances.rows, item) for item in range(BATCH)])
        key = batch.key.numpy().view(np.uint64)
        signal = Signal(batch.waveform, batch.lengths, key, np.arange(BATCH))
        with torch.no_grad():
            return augmentation(signal, iter(batch.material)).waveform

    return step


def speechbrain(folder: Path, table: pl.DataFrame) -> Callable[[int], Any]:
    augmenter = Augmenter(
        parallel_augment=False,
        concat_original=False,
        min_augmentations=3,
        max_augmentations=3,
        shuffle_augmentations=False,
        augmentations=[
            SpeedPerturb(orig_freq=16_000, speeds=[90, 100, 110]),
            AddReverb(csv_file=str(folder / "rir.csv"), rir_scale_factor=1.0),
            AddNoise(csv_file=str(folder / "noise.csv"), snr_low=0, snr_high=15),
        ],
    )
    rng = np.random.default_rng(0)
    paths, frames = table["path"].to_list(), (table["duration"] * 16_000).round().to_list()

    def step(number: int) -> torch.Tensor:
        waves = []
        for item in range(BATCH):
            index = item % len(paths)
            start = int(rng.integers(int(frames[index]) - SAMPLES + 1))
            wave, _ = audio_io.load(paths[index], num_frames=SAMPLES, frame_offset=start)
            waves.append(wave.transpose(0, 1).squeeze(1))
        return augmenter(torch.stack(waves), torch.ones(BATCH))[0]

    return step


def cpu_ms(step: Callable[[int], Any], batches: int = BATCHES) -> float:
    began = time.process_time()
    for number in range(batches):
        step(number)
    return 1e3 * (time.process_time() - began) / (batches * BATCH)


def alone() -> dict[str, Callable[[int], Any]]:
    """Every step of augment=full and others, by itself with probability 1, on one batch of noise."""
    cfg = compose_config(["augment=full", "augment.musan=none", "augment.rirs=none"])
    OmegaConf.set_struct(cfg, False)
    rooms = OmegaConf.create(
        {"_target_": "spkexp.augment.rooms.SimulatedRooms", "rt60": [0.2, 0.6], "direct_db": [0, 9]}
    )
    coloured = OmegaConf.create({"_target_": "spkexp.augment.noise.ColouredNoise", "exponent": [0, 2]})
    cfg.augment.waveform.steps.reverb = cfg.augment.waveform.steps.reverb.choices.simulated
    cfg.augment.waveform.steps.reverb.source = rooms
    kinds = cfg.augment.waveform.steps.noise.kinds
    for name in list(kinds)[1:]:
        del kinds[name]
    kinds[next(iter(kinds))].source = coloured
    nodes: dict[str, Any] = {}

    def collect(node: Any, name: str) -> None:
        parts = node.get("steps") or node.get("choices")
        if parts is None:
            node.probability = 1.0
            nodes[name] = node
        else:
            for key in parts:
                collect(parts[key], key)

    collect(cfg.augment.waveform, "")
    generator = torch.Generator().manual_seed(0)
    waveform = 0.1 * torch.randn(BATCH, SAMPLES, generator=generator)
    lengths = torch.full((BATCH,), SAMPLES)

    def stepper(node: Any) -> Callable[[int], Any]:
        augmentation: Sequence = build.augmentation(node, "augment.waveform", 16_000)

        def step(number: int) -> torch.Tensor:
            key, material = item_keys(0, number, np.arange(BATCH)), Material()
            augmentation.read(key, SAMPLES, material)
            with torch.no_grad():
                return augmentation(Signal(waveform, lengths, key, np.arange(BATCH)), iter(material.tensors)).waveform

        return step

    return {name: stepper(node) for name, node in nodes.items()}


def main() -> None:
    arguments = parser(__doc__, "augment")
    arguments.add_argument("--repeats", type=int, default=7)
    given = arguments.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        wav, m4a = make(folder)
        pair = {"spkexp": ours(folder, wav), "speechbrain": speechbrain(folder, wav)}
        for step in pair.values():
            cpu_ms(step, 12)
        turns = [{peer: cpu_ms(step) for peer, step in pair.items()} for _ in range(given.repeats)]
        whole = {peer: round(median(turn[peer] for turn in turns), 3) for peer in pair}
        crops = {}
        for suffix, table in (("wav", wav), ("m4a", m4a)):
            plain = Crops(Utterances.of(table, "speaker"), Reading(16_000, False, False), 2.0, "wrap", 0, False, None)
            items = len(table)
            rates = [
                cpu_ms(lambda n, c=plain, i=items: c.__getitems__([(n, k % i, 0) for k in range(BATCH)]))
                for _ in range(given.repeats)
            ]
            crops[suffix] = {"ms": round(median(rates), 4), "per_core_second": round(1e3 / median(rates))}
        single = {}
        for part, step in alone().items():
            batches = 2 if part == "codec" else BATCHES
            cpu_ms(step, batches)
            single[part] = round(median(cpu_ms(step, batches) for _ in range(5)), 3)
    write(
        given.output,
        "augmented crops of 2 s, CPU ms per utterance, one thread, batches of 32",
        {
            "asked_at_most_ms": 1.0,
            "crop_speed_reverb_noise_ms": whole,
            "times_16": {peer: round(16e3 / value) for peer, value in whole.items()},
            "asked_at_least_times_16": 8000,
            "crops_alone": crops,
            "asked_at_least_m4a_per_core_second": 400,
            "each_alone_ms": single,
            "repeats": given.repeats,
        },
        "torch",
        "speechbrain",
        "soundfile",
        "soxr",
        "av",
    )


if __name__ == "__main__":
    main()
