"""What models cost, as people read it: a table over all of them, then what is particular to each."""

import math
import textwrap

from rich import box
from rich.console import Console
from rich.table import Table

from spkexp.cost.activations import shape_text
from spkexp.cost.measure import Cost, Figure, Request

_MIB = 2**20


def cost_report(costs: list[Cost], request: Request, machine: str) -> str:
    """The whole page, 80 columns wide."""
    console = Console(width=80, color_system=None, highlight=False)
    with console.capture() as captured:
        console.print(_overview(costs, request, machine))
        for line in (*_notes(costs, request), ""):
            console.print(line)
        if request.memory is not None:
            console.print(_largest(costs, request.memory))
        for cost in costs:
            if cost.modules:
                console.print(_modules(cost, request))
        for cost in costs:
            console.print(_over_twice(cost))
            console.print()
    return "\n".join(line.rstrip() for line in captured.get().rstrip().splitlines())


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="none", box=box.SIMPLE_HEAD, pad_edge=False)


def _overview(costs: list[Cost], request: Request, machine: str) -> Table:
    table = _table(f"{request.seconds:g} s of audio an utterance, {request.precision}, {machine}")
    table.add_column("model", overflow="fold")
    columns = ["params\nM", "MACs\nG", "batch"]
    columns += ["infer\nutt/s", "train\nutt/s"] if request.steps else []
    for column in (*columns, "infer\nMiB", "train\nMiB"):
        table.add_column(column, justify="right", no_wrap=True)
    for cost in costs:
        head = [cost.name, f"{cost.parameters / 1e6:.2f}", giga(cost.macs.model)]
        for batch, passes in cost.passes.items():
            speeds = [_cell(one.speed) for one in passes] if request.steps else []
            memory = [_cell(one.memory, _MIB) for one in passes]
            table.add_row(*head, str(batch), *speeds, *memory)
            head = ["", "", ""]
    return table


def giga(macs: int) -> str:
    """Billions with three significant digits, as papers print them."""
    return f"{macs / 1e9:.3g}" if macs >= 1e7 else f"{macs / 1e9:.4f}"


def _cell(value: Figure | None, unit: float = 1.0) -> str:
    if value is None or isinstance(value, str):
        return "–"
    scaled = value / unit
    return f"{scaled:,.0f}" if scaled >= 100 else f"{scaled:.3g}"


def _notes(costs: list[Cost], request: Request) -> list[str]:
    """What the figures are, in as many sentences as there is need for."""
    features = ", ".join(dict.fromkeys(giga(cost.macs.features) for cost in costs))
    notes = [
        "MACs: one utterance, features to embedding: matrix products, convolutions, attention and scans; "
        f"the features' own, apart: {features} G."
    ]
    declared = {name: macs for cost in costs for name, macs in cost.macs.declared.items()}
    if declared:
        notes.append(
            "Of them by the formula of the operation: "
            + "; ".join(
                f"{cost.name} {name} {giga(macs)} G" for cost in costs for name, macs in cost.macs.declared.items()
            )
            + "."
        )
    if request.steps:
        notes.append(
            f"Utterances per second: median of up to {request.steps} steps, features included; training is forward "
            "and backward, without augmentation, head and optimizer."
        )
    counted = "the most the allocator held" if request.device.type == "cuda" else "tensors, counted exactly, not run"
    states = "; ".join(f"{cost.name} {cost.optimizer / _MIB:,.0f}" for cost in costs)
    notes.append(
        f"Peak memory: parameters, input, activations and, in training, gradients ({counted}). "
        f"AdamW keeps more, in MiB: {states}."
    )
    return [*notes, *_reasons(costs)]


def _reasons(costs: list[Cost]) -> list[str]:
    """Why there is no figure where there is none; each reason once."""
    reasons: dict[str, list[str]] = {}
    for cost in costs:
        for batch, passes in cost.passes.items():
            for kind, one in zip(("inference", "training"), passes, strict=True):
                for value in (one.memory, one.speed):
                    if isinstance(value, str):
                        reasons.setdefault(value, []).append(f"{cost.name} {kind}, batch {batch}")
    return [f"–: {reason} ({'; '.join(dict.fromkeys(where))})." for reason, where in reasons.items()]


def _largest(costs: list[Cost], memory: int) -> Table:
    table = _table(f"Largest batch in {memory / 2**30:g} GiB; in training beside AdamW's state")
    table.add_column("model", overflow="fold")
    for column in ("inference", "training"):
        table.add_column(column, justify="right")
    for cost in costs:
        cells = [f"{value:,}" if isinstance(value, int) else str(value) for value in cost.largest or ()]
        table.add_row(cost.name, *cells)
    return table


def _modules(cost: Cost, request: Request) -> Table:
    timed = any(module.share is not None for module in cost.modules.values())
    what = f"; time is the share of inference at batch {max(request.batch_sizes)}" if timed else ""
    table = _table(f"{cost.name}: modules; output and peak of one utterance{what}")
    table.add_column("module", overflow="fold")
    for column in ("parameters", "MACs M", *["time %"] * timed, "output", "peak MiB"):
        table.add_column(column, justify="right", no_wrap=True)
    for module in cost.modules.values():
        time = [f"{100 * module.share:.1f}" if module.share is not None else ""] if timed else []
        sizes = [f"{module.parameters:,}", f"{module.macs / 1e6:,.2f}" if module.macs else ""]
        label = f"{'  ' * module.depth}{module.label} {module.kind}"
        table.add_row(label, *sizes, *time, shape_text(module.output), f"{module.held / _MIB:.2f}")
    return table


def _over_twice(cost: Cost) -> str:
    if not cost.activations.over_twice:
        return f"{cost.name}: no module allocates more than twice its inputs in inference."
    lines = [f"{cost.name}: modules that allocate more than twice their inputs (inference, one utterance)"]
    for held in cost.activations.over_twice:
        kind = f"{len(held.names)} × {held.kind}" if len(held.names) > 1 else held.kind
        extent = "without any input" if math.isinf(held.ratio) else f"{held.ratio:.1f} times"
        lines.append(f"  {held.pattern} ({kind}): {held.bytes / _MIB:.2f} MiB, {extent}")
        lines += textwrap.wrap(held.reason, 80, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines)
