"""What a comparison can be sorted by: each metric of results.json with its name, its unit and where it is found."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Metric:
    """A number of a trial list's entry of results.json.

    The key "min_dcf.0.01" is entry["min_dcf"]["0.01"], its interval entry["min_dcf_ci95"]["0.01"]. Shown are value ×
    scale with so many digits.
    """

    key: str
    name: str
    scale: int
    unit: str
    digits: int
    better: Literal["lower", "higher"]

    def of(self, entry: Mapping[str, Any] | None) -> float | None:
        """The value; None where there is none, or none that is finite."""
        return _number(self._at(entry, ""))

    def interval(self, entry: Mapping[str, Any] | None) -> tuple[float, float] | None:
        """95 %."""
        bounds = self._at(entry, "_ci95")
        if not isinstance(bounds, list | tuple) or len(bounds) != 2:
            return None
        low, high = map(_number, bounds)
        return None if low is None or high is None else (low, high)

    def _at(self, entry: Mapping[str, Any] | None, ending: str) -> Any:
        kind, _, detail = self.key.partition(".")
        found = (entry or {}).get(f"{kind}{ending}")
        return found.get(detail) if detail and isinstance(found, Mapping) else None if detail else found

    def order(self, value: float) -> float:
        """By which the best sorts first."""
        return value if self.better == "lower" else -value

    def described(self) -> dict[str, Any]:
        return asdict(self)


_PERCENT: dict[str, tuple[str, Literal["lower", "higher"]]] = {
    "eer": ("EER", "lower"),
    "accuracy": ("accuracy", "higher"),
    "macro_f1": ("macro F1", "higher"),
    "rocch_eer": ("ROCCH-EER", "lower"),
}
_PLAIN: dict[str, tuple[str, Literal["lower", "higher"]]] = {
    "min_dcf": ("minDCF", "lower"),
    "act_dcf": ("actDCF", "lower"),
    "cllr": ("Cllr", "lower"),
    "min_cllr": ("minCllr", "lower"),
    "auc": ("AUC", "higher"),
}
# The order in which a table shows them.
_ORDER = ("eer", "accuracy", "macro_f1", "min_dcf", "act_dcf", "cllr", "min_cllr", "rocch_eer", "auc")
_DETAILED = ("min_dcf", "act_dcf")  # of a p_target each


def metric_of(key: str) -> Metric | None:
    """The metric with that key; None where there is none."""
    kind, dot, detail = key.partition(".")
    if (kind in _DETAILED) != bool(dot) or (detail and not re.fullmatch(r"[0-9.e-]+", detail)):
        return None
    if kind in _PERCENT:
        name, better = _PERCENT[kind]
        return Metric(key, name, 100, "%", 2, better)
    if kind in _PLAIN:
        name, better = _PLAIN[kind]
        return Metric(key, f"{name}({detail})" if detail else name, 1, "", 4 if kind == "auc" else 3, better)
    return None


def metrics_of(entries: Iterable[Mapping[str, Any]]) -> list[Metric]:
    """Those that any of the entries has, in the order of tables."""
    keys: dict[str, None] = {}
    for entry in entries:
        for kind in _ORDER:
            found = entry.get(kind)
            names = [f"{kind}.{p}" for p in found] if isinstance(found, Mapping) else [kind]
            for key in names:
                metric = metric_of(key)
                if metric is not None and metric.of(entry) is not None:
                    keys[key] = None
    return [metric for kind in _ORDER for key in keys if key.partition(".")[0] == kind and (metric := metric_of(key))]


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None
