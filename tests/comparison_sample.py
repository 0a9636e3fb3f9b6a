"""A comparison of three made-up runs, as comparison.json holds it."""

from statistics import NormalDist
from typing import Any

EER = {"key": "eer", "name": "EER", "scale": 100, "unit": "%", "digits": 2, "better": "lower"}
DCF = {"key": "min_dcf.0.01", "name": "minDCF(0.01)", "scale": 1, "unit": "", "digits": 3, "better": "lower"}
AUC = {"key": "auc", "name": "AUC", "scale": 100, "unit": "%", "digits": 2, "better": "higher"}
HOSTILE = '</script><img src=x onerror="window.hacked=1">\'{{ 7*7 }}\u2028&amp;'


def row(name: str, eer: float, p: float | None, seeds: int = 2) -> dict[str, Any]:
    """A row whose values follow from `eer`; p: of its difference to the first row; None: it is the first."""
    difference = None
    if p is not None:
        difference = {"value": eer - 0.01, "ci95": [eer - 0.013, eer - 0.007], "p": p / 2, "p_holm": p}
        difference["significant"] = p < 0.05
    metric = {"value": eer, "ci95": [eer * 0.8, eer * 1.25], "of_seeds": [eer * 0.9, eer * 1.1][:seeds]}
    probit = NormalDist()
    misses = [index / 300 for index in range(1, 300)]
    shift = -2 * probit.inv_cdf(eer)  # two normal distributions whose equal error rate is `eer`
    return {
        "name": name,
        "model": name.partition(" ")[0],
        "data": "synthetic",
        "status": "finished",
        "runs": [{"folder": f"runs/{name}-{seed}", "seed": seed, "status": "finished"} for seed in range(seeds)],
        "parameters": 1e6 / eer,
        "macs": None,
        "train_seconds": 90.0,
        "utterances_per_second": 1234.0,
        "config": {"model": name.partition(" ")[0], "trainer.optimizer.lr": eer / 10},
        "metrics": {
            "eer": {**metric, "difference": difference},
            "min_dcf.0.01": {"value": eer * 10, "ci95": None, "of_seeds": [], "difference": None},
            "auc": {"value": 1 - eer, "ci95": [1 - eer * 1.25, 1 - eer * 0.8], "of_seeds": [], "difference": None},
        },
        "lists": {"val": {"eer": eer / 2}},
        "conditions": {"gender": {"f f": {"eer": eer, "eer_ci95": [eer / 2, eer * 2], "num_trials": 1000}}},
        "curves": [
            {"seed": 0, "train": {"epoch": [0.5, 1], "loss": [3, 2]}, "val": {"epoch": [1], "eer": [eer], "loss": [2]}}
        ],
        "det": {"miss": misses, "false_alarm": [1 - probit.cdf(probit.inv_cdf(miss) + shift) for miss in misses]},
        "missing": None,
    }


def comparison(*rows: dict[str, Any], **changed: Any) -> dict[str, Any]:
    levels = [{"value": one["config"]["model"], "runs": 1, "mean": 0.01, "low": 0.009, "high": 0.011} for one in rows]
    return {
        "spkexp": "0.1.0",
        "made": "2026-11-21T15:20:00",
        "trials": "test",
        "lists": ["test", "val"],
        "metric": "eer",
        "metrics": [EER, DCF, AUC],
        "reference": 0,
        "differing": ["model", "trainer.optimizer.lr"],
        "rows": list(rows),
        "effects": {"model": {"numeric": False, "levels": levels}} if rows else {},
        "notes": ["one run skipped 3 trials"],
    } | changed


def three() -> dict[str, Any]:
    return comparison(row("ecapa 1a2b", 0.01, None), row("xvector 3c4d", 0.02, 0.03), row("mamba 5e6f", 0.08, 0.22))
