"""A workspace of wandb that compares runs by model and hyper-parameter: its definition, and how it gets there."""

import json
import os
import threading
from collections.abc import Callable, Sequence
from typing import Any

from spkexp.errors import UserError
from spkexp.report.comparison.ranking import Comparison
from spkexp.report.comparison.runs import Run
from spkexp.wandb_run import obstacle_to_wandb

SAVE_SECONDS = 30.0
_COORDINATES = 8  # axes of hyper-parameters that a plot of parallel coordinates can show
_CURVES = {
    "loss": "train/loss",
    "accuracy": "train/accuracy",
    "learning rate": "lr",
    "gradient norm": "train/grad_norm",
    "utterances/s": "train/utterances_per_second",
    "share of time waiting for data": "train/data_wait",
}


def tracked(runs: Sequence[Run]) -> tuple[str | None, str, list[Run]]:
    """(entity, project, runs): where those of `runs` are that wandb has. Raises UserError where that is not one place.

    The entity is None where the runs went to whoever was logged in.
    """
    found = [run for run in runs if (run.config.get("tracking") or {}).get("wandb") in ("online", "offline")]
    for run in found:
        if not run.config["tracking"].get("project"):
            raise UserError(
                f"--wandb: the config of {run.name} has no tracking.project, which says where wandb has the run; "
                f"name the other runs, or write it into {run.folder}/config.yaml"
            )
    places = list(
        dict.fromkeys((run.config["tracking"].get("entity"), run.config["tracking"]["project"]) for run in found)
    )
    if not places:
        raise UserError(
            "--wandb: none of the runs is in wandb; train with tracking.wandb=online, or offline and a sync"
        )
    if len(places) > 1:
        names = ", ".join(f"{entity}/{project}" if entity else project for entity, project in places)
        raise UserError(f"--wandb: the runs are in several projects ({names}); name the runs of one")
    return places[0][0], places[0][1], found


def workspace(compared: Comparison, entity: str, project: str, everything: bool) -> Any:
    """A wandb_workspaces Workspace. everything: of all runs of the project; else of the groups, or names, of the given.

    Raises UserError where the package is missing.
    """
    try:
        import wandb_workspaces.workspaces as ws
        from wandb_workspaces import expr
    except ImportError as error:
        raise UserError(f"--wandb: {error}; pip install wandb-workspaces") from error
    runs = [run for run in compared.runs if run.folder is not None]
    found = {(run.config.get("tracking") or {}).get("group") for run in runs}
    groups, names = sorted(group for group in found if group), [run.folder.name for run in runs if run.folder]
    grouped = None not in found
    scope = expr.Metric("Group").isin(groups) if grouped else expr.Metric("Name").isin(names)
    rate = compared.metric.key.replace(".", "/")
    target = f"trials/{compared.trials or 'test'}/{rate}"
    title = f"Runs of {', '.join(groups)}" if grouped else f"{len(runs)} runs"
    return ws.Workspace(
        entity=entity,
        project=project,
        name=f"spkexp: {'all runs' if everything else title}",
        sections=_sections(compared, runs, target, rate),
        settings=ws.WorkspaceSettings(x_axis="step", max_runs=max(10, len(runs))),
        runset_settings=ws.RunsetSettings(
            filters=[] if everything else expr.And(scope),
            order=[expr.Ordering(expr.Summary(target), ascending=compared.metric.better == "lower")],
            pinned_columns=[f"summary:{target}", "summary:parameters", "summary:utterances_per_second"],
        ),
    )


def _sections(compared: Comparison, runs: Sequence[Run], target: str, rate: str) -> list[Any]:
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws

    lists = list(dict.fromkeys(name for run in runs for name in (run.results or {}).get("trials") or {}))
    p_targets = sorted({p for run in runs for p in (run.config.get("scoring") or {}).get("p_targets") or ()})
    keys = [{"model": "names.model", "data": "names.data"}.get(key, key) for key in compared.differing]

    def curve(title: str, metric: str) -> Any:
        return wr.LinePlot(title=title, x="step", y=[metric])

    def bars_of(metric: str) -> Any:
        return wr.BarPlot(title=metric, metrics=[metric])

    def bars(by: str, key: Any) -> Any:
        title = f"{target} by {by}"
        return wr.BarPlot(
            title=title, metrics=[target], groupby=key, groupby_aggfunc="mean", groupby_rangefunc="minmax"
        )

    columns = [(key, wr.Config(key)) for key in keys[:_COORDINATES]] + [(target, wr.SummaryMetric(target))]
    axes = [wr.ParallelCoordinatesPlotColumn(metric=metric, display_name=name) for name, metric in columns]
    size, measured = wr.SummaryMetric("parameters"), wr.SummaryMetric(target)
    verification = [
        curve(f"val/{rate}", f"val/{rate}"),
        *(curve(f"val/min_dcf/{p}", f"val/min_dcf/{p}") for p in p_targets if rate == "eer"),
        *(bars_of(f"trials/{name}/{rate}") for name in lists or ["val", "test"]),
        wr.MediaBrowser(title="DET", media_keys=["plots/det"]),
    ]
    differences = [
        bars("model", wr.Config("names.model")),
        bars("group", "Group"),
        wr.ScatterPlot(title=f"{target} against parameters", x=size, y=measured, log_x=True),
        wr.ParallelCoordinatesPlot(title="what the runs differ in", columns=axes),
        wr.ParameterImportancePlot(with_respect_to=target),
        wr.RunComparer(diff_only="split"),
    ]
    return [
        ws.Section(name="Verification", is_open=True, panels=verification),
        ws.Section(name="Models and hyper-parameters", is_open=True, panels=differences),
        ws.Section(name="Training", is_open=True, panels=[curve(title, metric) for title, metric in _CURVES.items()]),
    ]


def definition(view: Any) -> dict[str, Any]:
    """The workspace as wandb stores it, for review."""
    model = view._to_model()
    spec = json.loads(model.spec.model_dump_json(by_alias=True, exclude_none=True))
    return {"entity": view.entity, "project": view.project, "name": view.name, "spec": spec}


def save(make: Callable[[str], Any], entity: str | None) -> str:
    """Store what `make` builds for an entity, the one given or that of the login; returns its address.

    Raises UserError, within seconds, where wandb cannot be reached or says no.
    """
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    os.environ.setdefault("WANDB_SILENT", "true")
    if obstacle := obstacle_to_wandb():
        raise UserError(f"--wandb: {obstacle}; workspace=FILE.json writes the definition without wandb")
    outcome: list[str | Exception] = []

    def work() -> None:
        try:
            import wandb

            view = make(entity or wandb.Api(timeout=int(SAVE_SECONDS)).default_entity or "").save()
            outcome.append(view.url)
        except Exception as error:  # handed to the caller, on whose thread it is raised
            outcome.append(error)

    # wandb tries again for many minutes; a thread can be left behind.
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(SAVE_SECONDS)
    if not outcome:
        raise UserError(f"--wandb: the server did not answer within {SAVE_SECONDS:g} s; try again later")
    if isinstance(outcome[0], Exception):
        raise UserError(f"--wandb: the workspace was not saved: {str(outcome[0]).splitlines()[0]}") from outcome[0]
    return outcome[0]
