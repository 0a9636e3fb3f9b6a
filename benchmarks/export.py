"""What an exported encoder saves and costs: size, speed and error rate of ONNX, as it is and with 8-bit integers.

    python benchmarks/export.py RUN [RUN ...] [--repeats 5] [--output FILE]

Each RUN is a trained run whose validation trials are at hand; without any, nothing is measured.
"utterances_per_second": of 3 s, one at a time and eight at a time, on one thread; torch and the two files take turns,
and the median of the repeats counts. "eer": of the run's validation trials, as fractions, with the 95 % interval of the
difference. "int8" quantises matrix products and convolutions, as the command does, "int8_matmul" the matrix products
alone. "deviation" is that of the command's check.
"""

import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import torch
from common import parser, write

from spkexp import build
from spkexp.evaluation import Evaluation, Request
from spkexp.exporting.cost import error_rates, utterances_per_second
from spkexp.exporting.files import export, int8_name
from spkexp.exporting.int8 import quantise
from spkexp.exporting.metadata import metadata_of
from spkexp.exporting.onnx_file import OnnxModel

BATCHES = (1, 8)


def measured(run: Path, folder: Path, repeats: int) -> dict[str, Any]:
    model, cfg, checkpoint = build.trained_model(run)
    model.requires_grad_(False)
    output = folder / f"{run.name}.onnx"
    exported = export(model, metadata_of(model, cfg, checkpoint), output, int8=True)
    matmul = output.with_suffix(".matmul.onnx")
    quantise(output, matmul, ("MatMul", "Gemm"))
    files = {"onnx": output, "int8": int8_name(output), "int8_matmul": matmul}
    forms: dict[str, Any] = {"torch": model} | {name: OnnxModel(file, 1) for name, file in files.items()}
    speeds: dict[tuple[str, int], list[float]] = {(name, batch): [] for name in forms for batch in BATCHES}
    for _ in range(repeats):
        for name, batch in speeds:
            speeds[name, batch].append(utterances_per_second(forms[name], model.sample_rate, batch))
    evaluation = Evaluation(run, cfg, checkpoint, Request(None, None, None, (), ()), torch.device("cpu"), ("val",))
    (trials,) = evaluation.reported
    scored = {name: evaluation.scored(form)[trials] for name, form in forms.items()}
    found: dict[str, Any] = {
        "model": cfg.names.model,
        "data": cfg.names.data,
        "trials": 0,
        "deviation": {},
        "forms": {},
    }
    found["deviation"] = {"onnx": exported[0].deviation, "int8": exported[1].deviation}
    for name in forms:
        rates = error_rates(scored["torch"], scored[name], evaluation.settings.bootstrap)
        apart = rates.difference
        found["trials"] = rates.num_trials
        found["forms"][name] = {
            "megabytes": round(files[name].stat().st_size / 1e6, 2) if name in files else None,
            "utterances_per_second": {str(batch): round(median(speeds[name, batch]), 1) for batch in BATCHES},
            "eer": round(rates.after, 5),
            "eer_less_torch": round(rates.after - rates.before, 5),
            "eer_less_torch_ci95": None if apart is None else [round(apart.low, 5), round(apart.high, 5)],
        }
    return found


def main() -> None:
    arguments = parser(__doc__, "export")
    arguments.add_argument("runs", nargs="*", type=Path, metavar="RUN")
    arguments.add_argument("--repeats", type=int, default=5)
    given = arguments.parse_args()
    if not given.runs:  # as `make benchmarks` starts it
        print("export: give runs")
        return
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        runs = {run.name: measured(run, Path(folder), given.repeats) for run in given.runs}
    write(given.output, __doc__.splitlines()[0], {"repeats": given.repeats, "runs": runs}, "torch", "onnxruntime")


if __name__ == "__main__":
    main()
