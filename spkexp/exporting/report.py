"""What the command prints of an export."""

from spkexp.exporting.agreement import SECONDS
from spkexp.exporting.cost import SECONDS as SPEED_SECONDS
from spkexp.exporting.cost import ErrorRates
from spkexp.exporting.files import Exported


def exported_line(exported: Exported, int8: bool) -> str:
    """encoder.onnx: 2.5 MB; deviates from torch by at most 1.2e-06 (…)"""
    size = exported.file.stat().st_size / 1e6
    said = "8-bit integers deviate" if int8 else "deviates"
    return (
        f"{exported.file}: {size:.1f} MB; {said} from torch by at most {exported.deviation:.1e} of an embedding's "
        f"largest value (ten lengths from {SECONDS[0]} s to {SECONDS[-1]:.0f} s, alone and in a padded batch)"
    )


def speed_line(torch: float, whole: float, int8: float) -> str:
    return (
        f"utterances of {SPEED_SECONDS:.0f} s a second, one at a time on this CPU: torch {torch:.1f}, "
        f"onnxruntime {whole:.1f}, int8 {int8:.1f}"
    )


def cost_line(name: str, rates: ErrorRates) -> str:
    """val: EER 7.85 % before and 7.91 % after int8: +0.06 % [-0.10, 0.21] …"""
    line = (
        f"{name}: EER {100 * rates.before:.2f} % before and {100 * rates.after:.2f} % after int8 "
        f"({rates.num_trials:,} trials): "
    )
    if rates.difference is None:
        return f"{line}{100 * (rates.after - rates.before):+.2f} %, too few speakers, or unknown ones, for an interval"
    low, high = rates.difference.low, rates.difference.high
    return f"{line}{100 * rates.difference.value:+.2f} % [{100 * low:+.2f}, {100 * high:+.2f}], 95 % interval"
