"""MUSAN (Snyder et al. 2015, OpenSLR 17) and RIRS_NOISES (Ko et al. 2017, OpenSLR 28): what augmentation mixes in."""

import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from spkexp.data.corpora import tree
from spkexp.errors import UserError

log = logging.getLogger(__name__)

PLACE = "augment.…"  # of a bank of recordings in the config, until `spkexp.build` says which

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
_reported: set[Path] = set()  # corpora of which the log has said what they lack


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


def matching_files(root: str, include: list[str], own: bool) -> tuple[Path, list[str]]:
    """The folder of the recordings, and the audio files below it whose path there matches one of `include`.

    own: where none does and the folder is no corpus that is known, it is somebody's own, and all its files are taken.
    Raises UserError if there are none.
    """
    if not os.path.isdir(root):
        raise UserError(f"{root}: no such folder; give the folder of the recordings as {PLACE}.root")
    folder, names = _files(Path(root).absolute())
    matches = re.compile("|".join(map(_pattern, include)))
    files = [name for name in names if matches.fullmatch(name)]
    if not files and own and names and tree.recognise(folder) is None:
        log.info("%s: no file matches %s: all %d are taken", folder, include, len(names))
        return folder, names
    if not files:
        found = f"{len(names)} audio files" if len(names) else "no audio"
        inside = tree.shortened([inner.name for inner in tree.subfolders(Path(root))])
        known = tree.recognise(Path(root))
        what = f"this is {known[0]} with" if known else "folders in it:"
        raise UserError(
            f"{root}: {found} below it, none of which matches include={include}; {what} {inside}; "
            f"give another folder as {PLACE}.root, or other patterns as {PLACE}.include (['**']: all)"
        )
    return folder, files


def _files(root: Path) -> tuple[Path, list[str]]:
    """The folder of the recordings, which may be MUSAN or RIRS_NOISES in `root`, and its audio files."""
    folder, corpus = corpus_folder(root)
    names = tree.audio_files(folder).to_list()
    if corpus is not None and folder not in _reported:  # several banks may draw from it
        _reported.add(folder)
        report(corpus, names)
    return folder, names


def _pattern(include: str) -> str:
    """A regular expression of the paths that `include` stands for: `**` any text, `*` and `?` within a name."""
    parts = {"**/": "(.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return "".join(parts.get(part, re.escape(part)) for part in re.split(r"(\*\*/|\*\*|\*|\?)", include))
