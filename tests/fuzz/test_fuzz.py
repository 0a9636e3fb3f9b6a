"""A few hundred damaged files of every kind that is read; `make fuzz` tries many more, each within bounds."""

import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from spkexp.errors import UserError
from tests.fuzz.mutations import KINDS, Edit, edited
from tests.fuzz.targets import TARGETS, seeds, try_one

EXAMPLES = {"configs": 15, "overrides": 4, "checkpoints": 25}  # those that build a model, or compose
PART = st.floats(0, 1, exclude_max=True)
EDITS = st.lists(st.builds(Edit, st.sampled_from(KINDS), PART, PART, st.integers(0, 65535)), min_size=1, max_size=6)


@pytest.fixture
def without_lazy_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    """hypothesis asks every module for its file, and speechbrain's, where another test needed it, then import things
    that are not there."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "speechbrain"]:
        monkeypatch.delitem(sys.modules, name)


@pytest.mark.usefixtures("without_lazy_modules")
@pytest.mark.parametrize("name", TARGETS)
def test_damaged_files_are_named_and_no_more(name: str, tmp_path: Path) -> None:
    """Read, or a UserError; whatever else is raised fails the test with the smallest file that does it."""

    @settings(
        max_examples=EXAMPLES.get(name, 60),
        derandomize=True,
        database=None,
        deadline=None,
        phases=(Phase.explicit, Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(seed=st.sampled_from(seeds(name)), donor=st.sampled_from(seeds(name)), edits=EDITS)
    def try_many(seed: bytes, donor: bytes, edits: list[Edit]) -> None:
        try_one(name, edited(seed, edits, donor), tmp_path)

    try_many()


@pytest.mark.parametrize("file", sorted((Path(__file__).parent / "found").iterdir()), ids=lambda file: file.name)
def test_what_was_found_stays_mended(file: Path, tmp_path: Path) -> None:
    """Inputs that brought a reader down once, called by their target and what was wrong."""
    try_one(file.name.partition("-")[0], file.read_bytes(), tmp_path)


@pytest.mark.parametrize("name", [name for name in TARGETS if name != "overrides"])
def test_the_sound_files_are_read(name: str, tmp_path: Path) -> None:
    """Or there would be nothing to damage: all but a command in wav.scp, and a pickle that is none of torch's."""
    failed = []
    for number, content in enumerate(seeds(name)):
        folder = tmp_path / str(number)
        folder.mkdir()
        try:
            TARGETS[name].read(folder, content)
        except UserError as error:
            failed.append(str(error))
    assert len(failed) <= {"checkpoints": 1, "manifests": 1}.get(name, 0), failed
