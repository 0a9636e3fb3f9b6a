"""What augmentation mixes in: the files of MUSAN (Snyder et al. 2015, OpenSLR 17) and of RIRS_NOISES (Ko et al. 2017,
OpenSLR 28)."""

import logging
import os
from collections.abc import Mapping
from pathlib import Path

from spkexp.data.corpora import tree
from spkexp.errors import UserError

log = logging.getLogger(__name__)

MUSAN: Mapping[str, int] = {"noise": 930, "music": 660, "speech": 426}
RIRS: Mapping[str, int] = {
    "simulated_rirs": 60_000,
    "real_rirs_isotropic_noises": 325 + 92,  # impulse responses and noises
    "pointsource_noises": 843,
}
MUSAN_LAYOUT = "noise/, music/ and speech/ with folders of wav files"
RIRS_LAYOUT = "simulated_rirs/, real_rirs_isotropic_noises/ and pointsource_noises/ with wav files"


def musan(root: Path) -> dict[str, list[str]]:
    """The absolute paths of MUSAN's files: noise (930), music (660) and speech (426), each sorted.

    `root` is the corpus's folder or the one that holds it. A part that is short is reported in the log, and empty if
    it is not there. Raises UserError if `root` is something else.
    """
    folder = _folder(root, MUSAN, 2)
    if folder is None:
        raise tree.wrong_root(root, "MUSAN", MUSAN_LAYOUT, "MUSAN")
    found = {name: _files(folder / name) for name in MUSAN}
    for name, files in found.items():
        tree.count_files(f"MUSAN {name}", len(files), MUSAN[name])
    return _some(found, root, "MUSAN", MUSAN_LAYOUT)


def rirs_noises(root: Path) -> dict[str, list[str]]:
    """The absolute paths of RIRS_NOISES' files: impulse responses that are simulated (60,000) and real (325), and noise
    (843 from points, 92 that filled a room; the latter have several channels). Each sorted.

    `root` is the corpus's folder or the one that holds it. Recorded responses and the noises of their rooms lie in one
    folder, whose rir_list and noise_list say which is which; without these lists the names do (`_noise_`).
    A part that is short is reported in the log, and empty if it is not there. Raises UserError if `root` is something
    else.
    """
    folder = _folder(root, RIRS, 1)
    if folder is None:
        raise tree.wrong_root(root, "RIRS_NOISES", RIRS_LAYOUT, "RIRS_NOISES")
    files = {name: _files(folder / name) for name in RIRS}
    for name, paths in files.items():
        tree.count_files(f"RIRS_NOISES {name}", len(paths), RIRS[name])
    rooms = folder / "real_rirs_isotropic_noises"
    listed = dict.fromkeys(_listed(rooms / "rir_list"), "real")
    listed |= dict.fromkeys(_listed(rooms / "noise_list"), "noise")
    found = {"simulated": files["simulated_rirs"], "real": [], "noise": list(files["pointsource_noises"])}
    for path in files["real_rirs_isotropic_noises"]:
        name = os.path.basename(path)
        found[listed.get(name, "noise" if "_noise_" in name else "real")].append(path)
    return _some({kind: sorted(paths) for kind, paths in found.items()}, root, "RIRS_NOISES", RIRS_LAYOUT)


def _folder(root: Path, names: Mapping[str, int], needed: int) -> Path | None:
    """`root` or the first folder in it that has `needed` of the folders `names`; MUSAN's names are common words, so one
    alone is not enough."""
    for folder in (root, *tree.subfolders(root)):
        if sum((folder / name).is_dir() for name in names) >= needed:
            return folder
    return None


def _files(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    base = os.path.abspath(folder)
    return sorted(f"{base}/{name}" for name in tree.audio_files(base))


def _listed(file: Path) -> set[str]:
    """The files' names of a Kaldi list, whose lines end in a path; none where there is no list."""
    if not file.is_file():
        return set()
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    return {line.split()[-1].rpartition("/")[2] for line in lines if line.strip()}


def _some(found: dict[str, list[str]], root: Path, name: str, layout: str) -> dict[str, list[str]]:
    if not any(found.values()):
        raise UserError(f"{root}: {name}'s folders are there, but no audio file is; expected {layout}")
    return found
