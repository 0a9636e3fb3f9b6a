"""Pictures of a comparison: what is drawn, and the curves, effects and places of names that they are drawn from."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spkexp.report.comparison.curves import MOST_POINTS, read_curves
from spkexp.report.comparison.effects import main_effects
from spkexp.report.comparison.figures import look, new_figure, shortened
from spkexp.report.comparison.files import write_plots
from spkexp.report.comparison.scatter import label_points
from spkexp.report.plots import probit, thinned
from spkexp.scoring.metrics import ErrorRates, error_rates
from tests.test_compare_formats import content, row


def test_curves_of_a_log_that_a_kill_cut_short(tmp_path: Path) -> None:
    lines = [
        {"step": 1, "epoch": 0.5, "lr": 1.0, "train": {"loss": 2.0, "accuracy": 0.25}},
        {"step": 2, "epoch": 1.0, "train": {"loss": float("nan")}},
        {"step": 2, "epoch": 1.0, "val": {"eer": 0.5, "min_dcf": {"0.01": 1.0}}, "val_ema": {"eer": 0.25}},
        {"step": 3, "seconds": 1.0},
        [1],
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "metrics.jsonl").write_bytes(text.encode() + b'{"step": 4, "epo\xff')
    assert read_curves(tmp_path) == {
        "train": {"epoch": [0.5, 1.0], "loss": [2.0, None], "accuracy": [0.25, None]},
        "val": {"epoch": [1.0], "eer": [0.5], "min_dcf.0.01": [1.0]},
        "val_ema": {"epoch": [1.0], "eer": [0.25]},
    }
    assert read_curves(tmp_path / "nowhere") == {}


def test_long_curves_are_means(tmp_path: Path) -> None:
    lines = [{"epoch": float(n), "train": {"loss": 2.0 * n}} for n in range(2 * MOST_POINTS)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    loss = read_curves(tmp_path)["train"]["loss"]
    assert len(loss) == MOST_POINTS
    assert loss[:2] == [1.0, 5.0]  # of 0 and 2, of 4 and 6


def test_main_effects_by_hand() -> None:
    """Of three values 1, 2, 6: mean 3, deviation √7, and 4.303 is the quantile of Student's t with two degrees."""
    seen = [({"lr": 0.1, "opt": "a"}, 1.0), ({"lr": 0.1, "opt": "b"}, 2.0), ({"lr": 0.1, "opt": "a"}, 6.0)]
    seen += [({"lr": 0.01, "opt": "b", "name": "x"}, 4.0)]
    found = main_effects(seen, ["opt", "lr", "name", "gone"])
    assert list(found) == ["opt", "lr"]
    one, many = found["lr"]["levels"]
    four = {"values": [4.0], "mean": 4.0, "low": None, "high": None}
    assert one == {"value": 0.01, "name": "0.01", "range": None, "runs": 1, **four}
    reach = 4.302653 * 7**0.5 / 3**0.5
    assert (many["mean"], many["low"], many["high"]) == pytest.approx((3.0, 3 - reach, 3 + reach), abs=1e-5)
    # Of two runs there is no interval: Student's t with one degree of freedom would make it 12.7 deviations wide.
    assert [(level["value"], level["values"], level["mean"], level["low"]) for level in found["opt"]["levels"]] == [
        ("a", [1.0, 6.0], 3.5, None), ("b", [2.0, 4.0], 3.0, None),
    ]  # fmt: skip
    assert not found["opt"]["numeric"]


def test_many_numbers_are_ranges() -> None:
    levels = main_effects([({"lr": n / 10}, float(n)) for n in range(20)], ["lr"])["lr"]["levels"]
    assert [level["runs"] for level in levels] == [4, 4, 4, 4, 4]
    assert [level["name"] for level in levels] == ["0–0.3", "0.4–0.7", "0.8–1.1", "1.2–1.5", "1.6–1.9"]
    assert levels[1]["range"] == [0.4, 0.7]
    assert [level["mean"] for level in levels] == [1.5, 5.5, 9.5, 13.5, 17.5]
    # A text for every run says nothing; a number does.
    assert main_effects([({"x": str(n)}, 1.0) for n in range(3)], ["x"]) == {}
    assert main_effects([({"x": True}, 1.0), ({"x": False}, 2.0)], ["x"]) == {}


def test_a_det_curve_is_thinned_evenly() -> None:
    rng = np.random.default_rng(0)
    target = rng.random(20_000) < 0.3
    rates = error_rates(rng.normal(size=20_000) + 2 * target, target)
    few = thinned(rates)
    assert 200 <= len(few.miss) <= 300
    steps = np.abs(np.diff(probit(rates.miss[1:-1]))) + np.abs(np.diff(probit(rates.false_alarm[1:-1])))
    along = np.concatenate([[0.0], np.cumsum(steps)])
    points = {
        (miss, alarm): place
        for place, (miss, alarm) in enumerate(zip(rates.miss[1:-1], rates.false_alarm[1:-1], strict=True))
    }
    chosen = np.array([points[point] for point in zip(few.miss, few.false_alarm, strict=True)])
    # What lies between two that stay is no longer than an even share of the curve.
    assert (along[chosen[1:] - 1] - along[chosen[:-1]]).max() <= along[-1] / 299
    short = ErrorRates(np.array([0.0, 0.5, 1.0]), np.array([1.0, 0.25, 0.0]))
    assert thinned(short).miss.tolist() == [0.5]
    assert probit([0.0, 0.5, 1.0]).tolist() == pytest.approx([-4.753424, 0.0, 4.753424], abs=1e-5)


def test_names_cover_nothing() -> None:
    """Twelve points close together, some with intervals: no name lies on another, on a point or on a bar."""
    rng = np.random.default_rng(1)
    points = [(float(x), float(y)) for x, y in 1 + 0.25 * rng.random((12, 2))] + [(5.0, 5.0)]
    bars = [[y - 0.1, y + 0.1] if n % 2 else [] for n, (_, y) in enumerate(points)]
    figure = new_figure(6.4, 4.6)
    axes = figure.add_subplot()
    axes.plot(*zip(*points, strict=True), "o")
    names = [f"a long name {n}" for n in range(len(points))]
    label_points(axes, points, names, bars, 8)
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in axes.texts]
    assert [text.get_text() for text in axes.texts] == names
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    frame = axes.get_window_extent()
    for box in boxes:
        assert frame.x0 <= box.x0
        assert box.x1 <= frame.x1
        for (x, y), bar in zip(points, bars, strict=True):
            assert not box.contains(*axes.transData.transform((x, y)))
            for height in np.linspace(bar[0], bar[1], 20) if bar else ():
                assert not box.contains(*axes.transData.transform((x, height)))


def test_rows_look_different_as_far_as_they_are_coloured() -> None:
    looks = [(look(place)["color"], look(place)["linestyle"]) for place in range(9)]
    assert len(set(looks)) == 9
    assert look(8) == look(30)
    assert shortened("a_very_long_name_of_a_model_seed1", 20) == "a_very_lo…odel_seed1"


def with_everything(names: list[str]) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    rows = []
    for place, name in enumerate(names):
        epochs = [1.0, 2.0, 3.0]
        curve = {"epoch": epochs, "loss": [3.0, None, 1.0], "eer": rng.random(3).tolist()}
        det = {"false_alarm": [0.5, 0.1, 0.0], "miss": [0.01, 0.1, 1.0], "seed": 0}
        config = {"trainer.optimizer.lr": 10.0 ** -(1 + place % 4), "loss": f"l{place % 2}"}
        macs, parameters = 10 ** (8 + rng.random()), 10 ** (6 + rng.random())
        more = {"curves": [{"seed": 0, "train": curve, "val": curve}], "det": det, "macs": macs}
        rows.append(
            row(name, 0.01 + 0.01 * place, 0.5 if place else None, **more, parameters=parameters, config=config)
        )
    keys = ["trainer.optimizer.lr", "loss"]
    seen = [(one["config"], one["metrics"]["eer"]["value"]) for one in rows]
    return content(*rows, differing=keys, effects=main_effects(seen, keys))


@pytest.mark.parametrize("count", [2, pytest.param(40, marks=pytest.mark.slow)])
def test_every_picture_is_drawn(tmp_path: Path, count: int) -> None:
    """Names that would be formulas, or too long, are no trouble."""
    pytest.importorskip("PIL")
    from PIL import Image

    write_plots(tmp_path, with_everything([f"$x^ü_{n} <b> {'long ' * 20}" for n in range(count)]))
    pictures = {file.stem: Image.open(file) for file in tmp_path.glob("*.png")}
    assert set(pictures) == {
        *("curves", "intervals", "det", "main-effects", "parallel-coordinates", "against-macs", "against-parameters"),
    }  # fmt: skip
    for name, picture in pictures.items():
        assert min(picture.size) >= (300 if name == "intervals" else 500), name
        assert len(picture.convert("RGB").getcolors(1 << 20) or []) > 20, name
    curves = json.loads((tmp_path / "curves.json").read_text())
    assert [one["curves"][0]["val"]["loss"] for one in curves] == [[3.0, None, 1.0]] * count


def test_what_cannot_be_drawn_is_not(tmp_path: Path) -> None:
    (tmp_path / "det.png").write_text("of an earlier comparison")
    write_plots(tmp_path, content(row("a", 0.1)))
    assert [file.name for file in tmp_path.iterdir()] == ["curves.json"]
    write_plots(tmp_path, content(row("a", None, missing="no results"), reference=None, trials=None))
    assert [file.name for file in tmp_path.iterdir()] == ["curves.json"]
