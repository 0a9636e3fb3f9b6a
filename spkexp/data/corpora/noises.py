"""MUSAN (Snyder et al. 2015, OpenSLR 17) and RIRS_NOISES (Ko et al. 2017, OpenSLR 28): what augmentation mixes in."""

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from spkexp.data.corpora import tree

# Files in the folders of each.
WHOLE: Mapping[str, Mapping[str, int]] = {
    "MUSAN": {"noise": 930, "music": 660, "speech": 426},
    "RIRS_NOISES": {
        "simulated_rirs": 60_000,
        "real_rirs_isotropic_noises": 325 + 92,  # impulse responses and noises
        "pointsource_noises": 843,
    },
}
# MUSAN's names are common words: one of them alone is not enough.
_NEEDED = {"MUSAN": 2, "RIRS_NOISES": 1}


def corpus_folder(root: Path) -> tuple[Path, str | None]:
    """(`root` or the folder in it that is one of these corpora, the corpus's name); (`root`, None) where none is."""
    for folder in (root, *tree.subfolders(root)):
        for name, parts in WHOLE.items():
            if sum((folder / part).is_dir() for part in parts) >= _NEEDED[name]:
                return folder, name
    return root, None


def report(name: str, files: Iterable[str]) -> None:
    """Hold the corpus's `files` (paths below its folder) against the known numbers; what is missing is a warning."""
    found = Counter(file.partition("/")[0] for file in files)
    for part, count in WHOLE[name].items():
        tree.count_files(f"{name} {part}", found[part], count)
