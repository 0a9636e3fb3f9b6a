"""What a corpus holds, as people read it."""

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

SHOWN = 5  # broken files that are named; the file beside the manifest lists all


def corpus_table(facts: dict[str, Any], width: int = 80) -> str:
    """A terminal table of `spkexp.data.prepared.summary` and of the broken files."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("split")
    for column in ("speakers", "utterances", "hours"):
        table.add_column(column, justify="right")
    for name, counts in {**facts["splits"], "all": facts}.items():
        speakers = f"{counts['speakers']:,}" if "speakers" in counts else "–"
        table.add_row(name, speakers, f"{counts['utterances']:,}", f"{counts['hours']:,.2f}")
    console = Console(width=width, color_system=None)
    with console.capture() as captured:
        console.print(table)
    lines = [line.rstrip() for line in captured.get().strip().splitlines()]
    if facts["broken"]:
        lines.append(f"{len(facts['broken']):,} of them cannot be used:" if "made" in facts else _left_out(facts))
        lines += [f"  {entry['reason']}" for entry in facts["broken"][:SHOWN]]
        lines += ["  …"] * (len(facts["broken"]) > SHOWN)
    if facts.get("clipped"):
        lines.append(f"{facts['clipped']:,} went beyond full scale and were clipped")
    return "\n".join(lines)


def _left_out(facts: dict[str, Any]) -> str:
    return f"{len(facts['broken']):,} could not be converted and are left out:"
