"""What is searched: Hydra's sweep overrides as optuna's distributions, and drawn values as overrides again."""

import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep, Sweep
from hydra.errors import HydraException
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from spkexp.errors import ConfigError

Value = str | int | float
Point = Mapping[str, Value]  # a value for each searched key
MAX_GRID = 1_000_000


@dataclass(frozen=True)
class Space:
    """distributions: by the key that is searched, with the `+` of its override; fixed: the other overrides.

    The values of a categorical distribution are the text of the override, quotes included, so that lists and names of
    config files are chosen among alike.
    """

    distributions: Mapping[str, BaseDistribution]
    fixed: tuple[str, ...]

    def overrides(self, point: Point) -> list[str]:
        """The overrides of the trial `point`: the fixed ones, and a value for each searched key."""
        drawn = [f"{key}={_text(point[key], distribution)}" for key, distribution in self.distributions.items()]
        return [*self.fixed, *drawn]

    def described(self) -> dict[str, str]:
        """Each searched key with its range in words, by which two searches are compared."""
        return {key: _describe(distribution) for key, distribution in self.distributions.items()}

    def size(self) -> int | None:
        """How many points there are; None where some value is drawn from an interval of real numbers."""
        counts = [_count(distribution) for distribution in self.distributions.values()]
        return None if None in counts else math.prod(count for count in counts if count is not None)

    def points(self, seed: int) -> Iterator[Point]:
        """Every point of a space of at most MAX_GRID points, in an order that `seed` shuffles."""
        size = self.size()
        assert size is not None
        values = [_values(distribution) for distribution in self.distributions.values()]
        for index in random.Random(seed).sample(range(size), size):
            point = {}
            for key, choices in zip(self.distributions, values, strict=True):
                index, place = divmod(index, len(choices))
                point[key] = choices[place]
            yield point

    def corners(self) -> Iterator[Point]:
        """Points whose configs show what mistakes the space holds: each choice, and both ends of each range."""
        extremes = {key: _extremes(distribution) for key, distribution in self.distributions.items()}
        first = {key: values[0] for key, values in extremes.items()}
        yield first
        for key, values in extremes.items():
            for value in values[1:]:
                yield {**first, key: value}


def read(overrides: list[str], config_loader: ConfigLoader) -> Space:
    """The search that `overrides` say; a later one of the same key replaces an earlier one.

    Raises ConfigError for a range without values, or one that cannot be searched, or where nothing is searched.
    """
    parser = OverridesParser.create(config_loader=config_loader)
    fixed: dict[str, str] = {}
    searched: dict[str, Override] = {}
    mistakes = []
    for text in overrides:
        try:
            override = parser.parse_override(text)
        except HydraException as error:
            mistakes.append(f"{text}: {' '.join(str(error).split())}")
            continue
        key = override.get_key_element()
        name = key.lstrip("+")
        for others in (fixed, searched):
            for other in [other for other in others if other.lstrip("+") == name]:
                del others[other]
        if override.is_sweep_override():
            searched[key] = override
        else:
            fixed[key] = text
    distributions = {}
    for key, override in searched.items():
        try:
            distributions[key] = _distribution(override)
        except ValueError as error:
            mistakes.append(f"{key}: {error}")
    if not searched and not mistakes:
        mistakes.append(
            "hydra/sweeper=optuna: no key is searched; give one a range, such as "
            "'trainer.optimizer.lr=tag(log, interval(1e-4,1e-2))'"
        )
    if mistakes:
        raise ConfigError(mistakes)
    return Space(distributions, tuple(fixed.values()))


def _distribution(override: Override) -> BaseDistribution:
    """Raises ValueError for what no distribution fits. The order of choices and `shuffle` mean nothing to a sampler."""
    text, value = str(override.input_line).partition("=")[2], override.value()
    assert isinstance(value, Sweep)
    log = _is_log(value, text)
    if isinstance(value, IntervalSweep):
        return _interval(value, log, text)
    if isinstance(value, RangeSweep):
        return _range(value, log, text)
    if log:
        raise ValueError(f"{text} has no scale; tag(log, …) goes with interval and range")
    choices = list(dict.fromkeys(override.sweep_string_iterator()))
    if not choices:
        raise ValueError(f"{text} has no values")
    return CategoricalDistribution(choices)


def _is_log(sweep: Sweep, text: str) -> bool:
    if unknown := sorted(sweep.tags - {"log"}):
        raise ValueError(f"{text} is tagged {', '.join(unknown)}; the only tag is log")
    return "log" in sweep.tags


def _interval(sweep: IntervalSweep, log: bool, text: str) -> BaseDistribution:
    assert sweep.start is not None
    assert sweep.end is not None
    low, high = sweep.start, sweep.end
    if not low <= high:
        raise ValueError(f"{text} has no values; the lower end comes first")
    if log and low <= 0:
        raise ValueError(f"{text} reaches {low:g}; a logarithmic scale begins above 0")
    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high, log=log)
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"{text} is not finite")
    return FloatDistribution(low, high, log=log)


def _range(sweep: RangeSweep, log: bool, text: str) -> BaseDistribution:
    """Hydra's range leaves its end out; a distribution holds its last value."""
    assert sweep.start is not None
    assert sweep.stop is not None
    first, step = Decimal(str(sweep.start)), Decimal(str(sweep.step))
    if step == 0:
        raise ValueError(f"{text} has a step of 0")
    count = math.ceil((Decimal(str(sweep.stop)) - first) / step)
    if count < 1:
        raise ValueError(f"{text} has no values")
    low, high = sorted((first, first + step * (count - 1)))
    if log and (abs(step) != 1 or low < 1):
        raise ValueError(f"{text} is on a logarithmic scale, which takes integers from 1 in steps of 1")
    if isinstance(sweep.start, int) and isinstance(sweep.stop, int) and isinstance(sweep.step, int):
        return IntDistribution(int(low), int(high), log=log, step=int(abs(step)))
    if log:
        raise ValueError(f"{text} is on a logarithmic scale, which takes integers or an interval")
    return FloatDistribution(float(low), float(high), step=float(abs(step)))


def _text(value: Value, distribution: BaseDistribution) -> str:
    """The value as Hydra reads it back, exactly; one of a range of real numbers without the noise of its last bits."""
    if isinstance(distribution, FloatDistribution):
        return f"{value:.12g}" if distribution.step is not None else repr(float(value))
    return str(value)


def _describe(distribution: BaseDistribution) -> str:
    if isinstance(distribution, CategoricalDistribution):
        return f"one of {', '.join(map(str, distribution.choices))}"
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    kind = "integers" if isinstance(distribution, IntDistribution) else "numbers"
    plain = distribution.step == 1 if kind == "integers" else distribution.step is None
    step = "" if plain else f" in steps of {distribution.step}"
    return f"{kind} from {distribution.low} to {distribution.high}{step}{', logarithmic' if distribution.log else ''}"


def _count(distribution: BaseDistribution) -> int | None:
    if isinstance(distribution, CategoricalDistribution):
        return len(distribution.choices)
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    if distribution.step is None:
        return 1 if distribution.low == distribution.high else None
    return round((distribution.high - distribution.low) / distribution.step) + 1


def _values(distribution: BaseDistribution) -> list[Value]:
    """All values of a distribution that has finitely many."""
    if isinstance(distribution, CategoricalDistribution):
        return [str(choice) for choice in distribution.choices]
    count = _count(distribution)
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    assert count is not None
    if isinstance(distribution, IntDistribution):
        return [distribution.low + index * distribution.step for index in range(count)]
    step = Decimal(str(distribution.step or 0))
    return [float(Decimal(str(distribution.low)) + index * step) for index in range(count)]


def _extremes(distribution: BaseDistribution) -> list[Value]:
    if isinstance(distribution, CategoricalDistribution):
        return _values(distribution)
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    return list(dict.fromkeys((distribution.low, distribution.high)))
