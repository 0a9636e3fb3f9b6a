"""A comparison in a terminal, in Markdown, LaTeX, CSV and JSON, and what writes them."""

import csv
import io
import json
import re
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from spkexp import compare
from spkexp.report.comparison import words
from spkexp.report.comparison.documents import escaped, latex, markdown
from spkexp.report.comparison.files import text_of
from spkexp.report.comparison.spreadsheet import csv_text
from spkexp.report.comparison.terminal import terminal_text
from spkexp.report.comparison.words import duration
from tests.comparison_tools import make_run, trial_scores

METRICS = [
    {"key": "eer", "name": "EER", "scale": 100, "unit": "%", "digits": 2, "better": "lower"},
    {"key": "min_dcf.0.01", "name": "minDCF(0.01)", "scale": 1, "unit": "", "digits": 3, "better": "lower"},
    {"key": "auc", "name": "AUC", "scale": 1, "unit": "", "digits": 4, "better": "higher"},
    {"key": "min_cllr", "name": "minCllr", "scale": 1, "unit": "", "digits": 3, "better": "lower"},
]


def row(name: str, eer: float | None, p: float | None = None, **more: Any) -> dict[str, Any]:
    found: dict[str, Any] = {
        "name": name, "model": "m", "data": "d", "status": "finished", "parameters": 14_650_000, "macs": 2_650_000_000,
        "train_seconds": 61.2, "utterances_per_second": 1233.0, "config": {"model": name}, "metrics": {}, "lists": {},
        "conditions": {}, "curves": [], "det": None, "untested": None, "missing": None,
        "runs": [{"folder": f"runs/{name}", "seed": 0, "status": "finished"}],
    }  # fmt: skip
    if eer is not None:
        difference = None
        if p is not None:
            difference = {"value": 0.1, "ci95": [-0.01, 0.2], "p": p, "p_holm": p, "significant": p < 0.05}
        ci95, seeds = [eer / 2, eer * 2], [eer]
        found["metrics"]["eer"] = {"value": eer, "ci95": ci95, "of_seeds": seeds, "difference": difference}
        found["metrics"]["auc"] = {"value": 1 - eer, "ci95": None, "of_seeds": seeds, "difference": None}
    return {**found, **more}


def content(*rows: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "spkexp": "0", "made": "2026", "trials": "test", "num_trials": 37611, "num_targets": 100, "lists": ["test"],
        "metric": "eer", "metrics": METRICS, "reference": 0, "replicates": 1000, "differing": ["model"], "effects": {},
        "rows": list(rows), "notes": ["A note: with_underscore & 5 %."], **more,
    }  # fmt: skip


THREE = content(
    row("ecapa_small", 0.0125),
    row("b&w 100%", 0.025, 0.04),
    row("naïve|ü", 0.03, 0.2),
    row("lost", None, missing="unfinished, no results"),
)


def lines_of(text: str, name: str) -> list[str]:
    return next(line for line in text.splitlines() if name in line).split()


def test_a_terminal_of_80_columns() -> None:
    text = terminal_text(THREE)
    assert max(map(len, text.splitlines())) <= 80
    lines = text.splitlines()
    assert lines[0] == "test: 4 runs"
    assert lines_of(text, "ecapa_small") == ["ecapa_small", "1.25", "0.62–2.50", "–", "0.9875"]
    assert lines_of(text, "b&w") == ["b&w", "100%", "2.50†", "1.25–5.00", ".040", "–", "0.9750°"]
    assert lines_of(text, "naïve") == ["naïve|ü", "3.00", "1.50–6.00", ".200", "–", "0.9700°"]
    assert "† differs from ecapa_small (p < .05, joint bootstrap over speakers, 1,000" in text
    assert "Holm's correction for 2 comparisons" in text
    assert lines[-1] == "runs/lost: unfinished, no results"
    costs = text[text.index("What they cost") :]
    assert lines_of(costs, "ecapa_small") == ["ecapa_small", "14.65", "2.65", "61", "s", "1,233"]
    assert "p after Holm's correction for 2 comparisons" in " ".join(text.split())
    digits = [words.costs(row("a", 0.1, macs=macs))[1] for macs in (71_969_280, 529_096_704, 14.72e9, 123.4e9, 1234e9)]
    assert digits == ["0.0720", "0.529", "14.7", "123", "1,234"]  # three that tell


def test_of_many_settings_a_handful_is_shown() -> None:
    keys = [f"a.key{number}" for number in range(17)]
    config = dict.fromkeys(keys, "x" * 90)
    text = terminal_text(content(row("a", 0.1, config=config), row("b", 0.2, config={}), differing=keys))
    assert "and 12 more: output=DIR lists them all" in " ".join(text.split())
    assert "and 12 more: see" not in " ".join(text.split())
    assert "a.key4=xxx" in text
    assert "a.key5" not in text
    assert f"{'x' * 39}…" in re.sub(r"\s", "", text)


def test_markdown_is_a_table_whatever_the_names() -> None:
    text = markdown(content(*THREE["rows"], row("a\nb|c`d", 0.04)))
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len(table) == 2 + 4
    bars = {len(re.findall(r"(?<!\\)\|", line)) for line in table}
    assert bars == {len(table[0].split("|")) - 1}
    assert table[0] == ("| run | EER % | minDCF(0.01) | AUC | params M | GMAC of 2 s | trained | utt/s | config |")
    assert table[2].startswith(r"| ecapa\_small | **1.25** (0.62–2.50) | – | **0.9875** |")
    assert "| 2.50† (1.25–5.00) |" in table[3]
    assert r"| naïve\|ü |" in table[4]
    assert "- runs/lost: unfinished, no results" in text


def test_latex_is_balanced_and_escaped() -> None:
    text = latex(THREE)
    assert r"ecapa\_small & \textbf{1.25} {\footnotesize [0.62--2.50]} & -- & \textbf{0.9875} & 14.65 & 2.65 \\" in text
    assert r"b\&w 100\% & 2.50$^{\dagger}$ {\footnotesize [1.25--5.00]}" in text
    assert r"naïve\textbar{}ü" in text
    assert "% A note: with_underscore & 5 %." in text.splitlines()
    for name in ("table", "tabular"):
        assert text.count(f"\\begin{{{name}}}") == text.count(f"\\end{{{name}}}") == 1
    for line in text.splitlines():
        if line.startswith("%"):
            continue
        bare = re.sub(r"\\[{}&%$#_]", "", line)
        assert bare.count("{") == bare.count("}"), line
        assert bare.count("$") % 2 == 0, line
        assert not re.search(r"(?<!\\)[%#]", line), line
    columns = {len(re.split(r"(?<!\\)&", line)) for line in text.splitlines() if line.endswith(r"\\")}
    (spec,) = re.findall(r"\\begin{tabular}{@{}(\w+)@{}}", text)
    assert columns == {len(spec)}
    for rule in ("toprule", "midrule", "bottomrule"):
        assert text.count(f"\\{rule}") == 1
    assert r"\label{tab:test}" in text
    assert escaped("a_b {c}\\d~e^f") == r"a\_b \{c\}\textbackslash{}d\textasciitilde{}e\textasciicircum{}f"
    assert escaped("<g> $1 #2\n5%…") == r"\textless{}g\textgreater{} \$1 \#2 5\%\ldots{}"


def test_csv_has_every_number_as_it_is() -> None:
    (first, second, _, lost) = csv.DictReader(io.StringIO(csv_text(THREE)))
    assert (first["rank"], first["name"], first["eer"], first["eer_low"]) == ("1", "ecapa_small", "0.0125", "0.00625")
    assert (first["reference"], first["eer_p"], first["seeds"], first["folders"]) == ("1", "", "0", "runs/ecapa_small")
    assert (second["eer_difference_low"], second["eer_p_holm"], second["auc"]) == ("-0.01", "0.04", "0.975")
    assert (second["parameters"], second["config.model"]) == ("14650000", "b&w 100%")
    assert (lost["rank"], lost["eer"], lost["missing"]) == ("", "", "unfinished, no results")
    assert "min_cllr_low" in first  # all metrics, not those alone that a page has room for


def test_bold_is_the_best_and_not_the_first() -> None:
    """An accuracy is best where it is highest."""
    higher = {**METRICS[0], "better": "higher"}
    text = markdown(content(row("a", 0.3), row("b", 0.1), metrics=[higher], notes=[]))
    assert "| a | **30.00** (15.00–60.00) |" in text
    assert "| b | 10.00 (5.00–20.00) |" in text


def test_seeds_and_times() -> None:
    twice = deepcopy(row("a", 0.1))
    twice["runs"] *= 2
    twice["metrics"]["eer"]["of_seeds"] = [0.08, 0.12]
    text = terminal_text(content(twice, row("b", 0.2, 0.5), notes=[]))
    assert text.splitlines()[0] == "test: 2 configurations, 3 runs"
    assert lines_of(text, " a ")[:3] == ["a", "2", "10.00"]
    assert "and over seeds where a value is the mean of several" in " ".join(text.split())
    assert "No row differs significantly from a (joint bootstrap over speakers, 1,000 replicates)." in " ".join(
        text.split()
    )
    assert [duration(seconds) for seconds in (12.3, 3000, 16_200, 360_000)] == ["12 s", "50 min", "4.5 h", "100.0 h"]


def test_the_command_writes_and_prints_every_format(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("a_ü", "b")
    places = [make_run(tmp_path / name, [], trial_scores(3.5 - n, n)) for n, name in enumerate(names)]

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["compare", *map(str, places), "seeds=apart", *map(str, arguments)])
        code = 0
        try:
            compare.main()
        except SystemExit as end:
            code = int(end.code or 0)
        return code, *capsys.readouterr()

    out = tmp_path / "out"
    code, table, _ = run("bootstrap=30", f"output={out}")
    assert code == 0
    many = content(row("a", 0.1, config={f"k{n}": n for n in range(7)}), differing=[f"k{n}" for n in range(7)])
    assert f"and 2 more: see {out / 'comparison.json'}" in text_of(many, "terminal", 300, out)
    assert table.splitlines()[-1] == f"written: {out / 'comparison.html'}, and tables and plots beside it"
    assert {file.name for file in out.iterdir()} == {
        *(f"comparison.{ending}" for ending in ("md", "tex", "csv", "json", "html")), "plots",
    }  # fmt: skip
    assert {"curves.json", "curves.png", "det.png"} <= {file.name for file in (out / "plots").iterdir()}
    written = json.loads((out / "comparison.json").read_text())
    assert [one["name"] for one in written["rows"]] == ["a_ü", "b"]
    assert written["rows"][1]["metrics"]["eer"]["difference"]["p_holm"] < 1
    for form, ending in (("markdown", "md"), ("latex", "tex"), ("csv", "csv"), ("json", "json")):
        code, text, err = run("bootstrap=30", f"format={form}")
        assert (code, err) == (0, "")
        same = re.compile(r'"made": "[^"]*"')
        assert same.sub("", text) == same.sub("", (out / f"comparison.{ending}").read_text()), form
    assert "format: html is not printed; output=DIR writes the page" in run("format=html")[2]
    (tmp_path / "file").write_text("")
    code, _, err = run("bootstrap=0", f"output={tmp_path / 'file'}")
    assert code == 2
    assert f"output={tmp_path / 'file'}: cannot be written: Not a directory" in err


def test_the_help_has_every_key() -> None:
    assert max(map(len, compare.HELP.splitlines())) <= 80
    for key in compare.Arguments.model_fields.keys() - {"runs", "wandb"}:
        assert f"\n  {key}=" in compare.HELP, key
