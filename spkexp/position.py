"""Where training is: with the weights and the optimizer's state, all that the next step depends on."""

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Position:
    """Steps are optimizer steps; one that was left out for a loss that was not finite counts as well."""

    step: int = 0  # steps done
    validated: int = 0  # the step that was validated last
    best: dict[str, Any] = field(default_factory=dict)  # step, value (the lower the better) and weights of the best
    since_best: int = 0  # validations since then
    seconds: float = 0.0  # spent in steps
    skipped_steps: int = 0  # left out for a loss or a gradient that was not finite; not those of fp16's scaler
    rollbacks: int = 0

    def state(self) -> dict[str, Any]:
        return asdict(self)

    def load(self, state: dict[str, Any]) -> None:
        self.__dict__.update(Position(**state).__dict__)

    def offer(self, value: float | None, weights: str) -> bool:
        """Whether these weights of this step are the best so far, and are noted as such.

        value: what they are judged by, the lower the better; None where nothing can judge them: the newest is best.
        """
        if value is not None and value >= self.best.get("value", float("inf")):
            return False
        self.best = {"step": self.step, "value": value, "weights": weights}
        return True
