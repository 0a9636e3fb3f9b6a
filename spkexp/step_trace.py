"""trainer.profile=true: what a few steps spend their time on."""

import logging
from pathlib import Path
from types import TracebackType

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from spkexp import distributed

log = logging.getLogger(__name__)
# Past the first steps, in which caches fill and kernels are chosen.
WAIT, WARM_UP, STEPS = 5, 2, 5


class StepTrace:
    """Records STEPS steps of the main process into `folder`: trace.json (for Perfetto), operations.txt."""

    def __init__(self, enabled: bool, folder: Path, device: torch.device) -> None:
        self._profile: profile | None = None
        self._folder, self._written, self._on_cuda = folder, False, device.type == "cuda"
        self._steps = 0
        if enabled and distributed.is_main():
            activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self._on_cuda else [])]
            when = schedule(wait=WAIT, warmup=WARM_UP, active=STEPS, repeat=1)
            self._profile = profile(
                activities=activities,
                schedule=when,
                on_trace_ready=self._write,
                record_shapes=True,
                profile_memory=True,
            )

    def __enter__(self) -> "StepTrace":
        if self._profile:
            self._profile.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._profile:
            self._profile.stop()
            if not self._written and kind is None:
                log.warning("trainer.profile: the run is shorter than %d steps; nothing was traced", WAIT + WARM_UP + 1)

    def step(self) -> None:
        """A step is done."""
        if self._profile and not self._written:
            self._steps += 1
            self._profile.step()

    def _write(self, found: profile) -> None:
        traced = self._steps - WAIT - WARM_UP
        if traced <= 0:  # the run ended as the first of them was to begin
            return
        self._written = True
        self._folder.mkdir(exist_ok=True)
        found.export_chrome_trace(str(self._folder / "trace.json"))
        by = "self_cuda_time_total" if self._on_cuda else "self_cpu_time_total"
        table = found.key_averages().table(sort_by=by, row_limit=40, max_name_column_width=60)
        (self._folder / "operations.txt").write_text(table + "\n", encoding="utf-8")
        log.info("trainer.profile: %d steps traced, see %s", traced, self._folder)
