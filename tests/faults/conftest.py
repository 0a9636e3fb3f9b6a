"""A corpus, a run that nobody disturbed, and one to disturb."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.faults.corpus import arguments, write_corpus
from tests.faults.disk import Disk
from tests.faults.runs import Run, wait_for
from tests.faults.traces import broken_files, differences, last_step, result

EPOCHS = "trainer.epochs=5"


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("faults") / "a corpus ü")


class Victim:
    """A run in `folder`, of five epochs of four steps unless `settings` say otherwise."""

    def __init__(self, corpus: Path, folder: Path, forked: bool = True, processes: int = 1) -> None:
        self.corpus, self.folder, self.forked, self.processes = corpus, folder, forked, processes
        self.told, self.output = folder, folder.parent / f"{folder.name}.txt"
        self.prefix: Sequence[str] = ()

    def live_on(self, disk: Disk) -> None:
        """The folder is on `disk`, where the run and this process see it by different names."""
        self.told, self.prefix, self.forked = disk.place / "a run ü", disk.prefix, False
        self.folder = disk.seen(self.told)

    def start(self, *settings: str) -> Run:
        return self._run(arguments(self.corpus, self.told, EPOCHS, *settings))

    def resume(self, *settings: str) -> Run:
        return self._run([f"resume='{self.told}'", *settings])

    def _run(self, given: Sequence[str]) -> Run:
        given = [*given, "trust=[tests]"]  # which hold what strikes it
        return Run(given, self.output, forked=self.forked, processes=self.processes, prefix=self.prefix)

    def reaches(self, step: int, run: Run) -> None:
        wait_for(lambda: last_step(self.folder) >= step, run)

    def assert_clean(self, run: Run) -> None:
        """After the end of `run`: nothing runs on, and every file can be read."""
        assert run.orphans() == {}
        assert broken_files(self.folder) == []

    def assert_finishes_like(self, whole: Path, run: Run) -> None:
        """`run` comes to its end with all that the run in `whole` came to."""
        assert run.wait() == 0, run.text()
        self.assert_clean(run)
        assert differences(result(whole), result(self.folder)) == []


@pytest.fixture
def victim(corpus: Path, tmp_path: Path) -> Victim:
    return Victim(corpus, tmp_path / "a run ü")


@pytest.fixture(scope="session")
def whole(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of what `Victim` runs, undisturbed."""
    undisturbed = Victim(corpus, tmp_path_factory.mktemp("faults") / "whole")
    run = undisturbed.start()
    assert run.wait() == 0, run.text()
    undisturbed.assert_clean(run)
    return undisturbed.folder
