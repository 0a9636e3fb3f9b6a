"""Where training is, shown by one process."""

from spkexp import distributed
from spkexp.bar import Bar


class TrainingProgress(Bar):
    """A bar, or lines of a log, over the steps of a run."""

    def __init__(self, first_step: int, total_steps: int) -> None:
        super().__init__("step", total_steps, first_step, shown=distributed.is_main())
