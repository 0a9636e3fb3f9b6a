"""What a dataset holds, as people read it on a terminal."""

import textwrap
from collections.abc import Iterator
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from spkexp.data.description import Description
from spkexp.data.levels import Sample
from spkexp.data.quantiles import quantiles

WIDTH = 80
SHOWN = {"min": "min", "p05": "5 %", "median": "median", "p95": "95 %", "max": "max"}


def description_text(description: Description, sample: Sample | None, sample_rate: int) -> str:
    """Tables of counts and of distributions, then what a user should know before training at `sample_rate` (Hz)."""
    console = Console(width=WIDTH, color_system=None, highlight=False)
    with console.capture() as captured:
        console.print(_counts(description))
        console.print(_distributions(description, sample))
        if sample is not None and sample.mel:
            console.print(_mel(sample))
    lines = [line.rstrip() for line in captured.get().rstrip().splitlines()]
    notes = [*_notes(description), *(() if sample is None else _sample_notes(sample, sample_rate))]
    return "\n".join([*lines, "", *(line for note in notes for line in textwrap.wrap(note, WIDTH))])


def _table(title: str, first: str, others: list[str]) -> Table:
    table = Table(title=title, title_justify="left", title_style="none", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(first, overflow="fold")
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _counts(description: Description) -> Table:
    labelled = description.label != "speaker"
    crop = description.crop_seconds
    columns = ["speakers", *[f"{description.label}s"] * labelled, "utterances", "hours"]
    columns += [] if crop is None else [f"shorter than {crop:g} s"]
    table = _table(description.data, "split", columns)
    groups = dict(description.splits)
    if len(groups) > 1:
        groups["together"] = description.all
    for name, group in groups.items():
        facts = group.facts(crop)
        speakers = "–" if facts["speakers"] is None else f"{facts['speakers']:,}"
        classes = [f"{facts['classes']:,}"] * labelled
        shorter = [] if crop is None else [f"{facts['shorter_than_crop']:,}"]
        table.add_row(name, speakers, *classes, f"{facts['utterances']:,}", f"{facts['hours']:,.2f}", *shorter)
    return table


def _distributions(description: Description, sample: Sample | None) -> Table:
    table = _table("Distributions", "", list(SHOWN.values()))

    def add(name: str, values: Any) -> None:
        found = quantiles(values)
        if found is not None:
            table.add_row(name, *(number(found[key]) for key in SHOWN))

    for what, column in (
        ("seconds an utterance", "seconds"),
        (f"utterances a {description.label}", "utterances_per_class"),
        (f"seconds a {description.label}", "seconds_per_class"),
    ):
        for split, group in description.splits.items():
            add(f"{what}, {split}", getattr(group, column))
    if sample is not None:
        add("RMS level, dB re full scale", sample.column("rms_db"))
        add("peak, dB re full scale", sample.column("peak_db"))
        add("estimated SNR, dB", sample.column("snr_db"))
    return table


def number(value: float) -> str:
    """Three digits or more, without an exponent: 0.6, 14.6, 1,234."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{round(value, 2) + 0.0:,.4g}"  # no -0


def _mel(sample: Sample) -> Table:
    table = _table("Log-mel features", "normalisation", ["min", "mean", "max"])
    for name, mel in sample.mel.items():
        facts = mel.facts()
        table.add_row(name, *(f"{round(facts[key], 2) + 0.0:.2f}" for key in ("min", "mean", "max")))
    return table


def _notes(description: Description) -> Iterator[str]:
    files = ", ".join(f"{count:,} {name or 'without extension'}" for name, count in description.extensions.items())
    yield f"Utterances by kind of file: {files}."
    if description.skipped:
        yield f"{description.skipped:,} utterances are left out: their files cannot be used."
    if description.shared_speakers is not None and len(description.splits) > 1:
        yield f"Speakers in more than one split: {description.shared_speakers:,}."


def _sample_notes(sample: Sample, sample_rate: int) -> Iterator[str]:
    facts = sample.facts()
    count = facts["utterances"]
    unreadable = f"; {sample.bad:,} more could not be read" if sample.bad else ""
    yield f"Levels, SNR and mel: of {count:,} utterances, seed {sample.seed}{unreadable}."
    if not count:
        return
    clipped, silent = facts["clipped_utterances"], facts["silent_utterances"]
    share = 100 * facts["full_scale_share"]
    offset = max(abs(facts["dc_offset"]["min"]), abs(facts["dc_offset"]["max"]))
    yield (
        f"Clipped: {clipped:,} utterances; {share:.3g} % of all samples are at full scale. Silent: {silent:,}. "
        f"Largest DC offset: {offset:.2g}."
    )
    rates = ", ".join(f"{number:,} at {rate} Hz" for rate, number in facts["sample_rates"].items())
    channels = ", ".join(f"{number:,} with {name}" for name, number in facts["channels"].items())
    yield f"Sample rates: {rates}. Channels: {channels}."
    needs = ["data.resample=true"] * (set(facts["sample_rates"]) != {str(sample_rate)})
    needs += ["data.mix_channels=true"] * (set(facts["channels"]) != {"1"})
    if needs:
        yield f"A model of {sample_rate} Hz mono needs {' and '.join(needs)}."
    if not sample.mel:
        yield "The model has no mel features: it hears the waveform."
