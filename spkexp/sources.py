"""Where a model comes from: a folder here, an address on the web, the Hugging Face hub. What is far is fetched once.

    runs/2026-11-21/101500-ecapa-voxceleb2-1a2b3c4d         a run, a checkpoint or another portable folder
    https://host/model.tar.gz#sha256=HEX                     an archive of one, with its checksum
    user/name or user/name@revision                          a repository of models on the hub

Fetched folders stay in the cache ($SPKEXP_CACHE, ~/.cache/spkexp; the hub's own in $HF_HOME), and a second use asks
nobody.
"""

import os
import re
import shutil
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from spkexp import archives
from spkexp.download import Download, digest, fetch
from spkexp.errors import UserError
from spkexp.lock import hold

ARCHIVES = (".tar.gz", ".tgz", ".tar", ".zip")
# What of a repository on the hub is a model; its other files are left there.
WANTED = ("model.safetensors", "config.yaml", "labels.json", "SHA256SUMS", "results.json", "README.md")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
_DIGEST = re.compile(r"sha256=([0-9a-fA-F]{64})")


def is_remote(source: str | Path) -> bool:
    """Whether `source` is to be fetched: an address, or an id of the hub that no path here is called like."""
    text = os.fspath(source)
    return _is_url(text) or (_HUB_ID.fullmatch(text) is not None and not os.path.lexists(text) and _may_be_id(text))


def local(source: str | Path, revision: str | None = None) -> Path:
    """The folder that `source` means, fetched first where it is far. A path is returned as it is, there or not.

    revision: a branch, tag or commit of a repository on the hub. Raises UserError that says what to put where by hand.
    """
    text = os.fspath(source)
    if not is_remote(source):
        if revision is not None:
            raise UserError(f"revision={revision}: {text} is a path; only what is on the hub has revisions")
        if text.lower().endswith(ARCHIVES) and os.path.isfile(text):
            raise UserError(f"{text}: is an archive; unpack it (tar xf FILE -C DIR) and name the folder")
        return Path(source).expanduser()
    return _from_archive(text) if _is_url(text) else _from_hub(text, revision)


def file(source: str | Path) -> Path:
    """The file that `source` means: a path, an address with a checksum, or `user/name/PATH` below hf: on the hub.

    As in hf:speechbrain/spkrec-ecapa-voxceleb/embedding_model.ckpt. Raises UserError.
    """
    text = os.fspath(source)
    if text.startswith("hf:"):
        return _file_of_hub(text)
    return _fetched(text) if _is_url(text) else Path(source).expanduser()


def cache() -> Path:
    """The folder in which things are kept that can be had again."""
    return Path(os.environ.get("SPKEXP_CACHE") or "~/.cache/spkexp").expanduser()


def _is_url(text: str) -> bool:
    try:
        return urlsplit(text).scheme in ("http", "https")
    except ValueError as error:
        if not text.lower().startswith(("http:", "https:")):
            return False
        raise UserError(f"{text}: is no address: {error}") from error


def _may_be_id(text: str) -> bool:
    """A path that was mistyped is no question to the hub: `runs/2026` or `./model` are paths, as is what lies in a
    folder that is there."""
    owner = text.partition("/")[0]
    return owner not in (".", "..", "runs") and not os.path.isdir(owner)


def _fetched(url: str) -> Path:
    """The file at an address, in the cache."""
    address, _, fragment = url.partition("#")
    expected = _DIGEST.fullmatch(fragment)
    if expected is None:
        raise UserError(
            f"{url}: an address needs the checksum of its file, {address}#sha256=HEX (64 digits; of a file that you "
            "have: sha256sum FILE)"
        )
    name = PurePosixPath(urlsplit(address).path).name.lstrip(".") or "file"  # .lock is ours
    path = cache() / "models" / expected[1].lower() / name
    with hold(path.with_name(".lock"), None, "set SPKEXP_CACHE to a folder that can be written"):
        if not path.is_file():
            remedy = f"or fetch it yourself and put it at {path}"
            fetch(Download(address, path, "sha256", expected[1].lower(), remedy))
        elif (found := digest(path, "sha256")) != expected[1].lower():
            raise UserError(f"{path}: its sha256 is {found}, not that of {url}; remove it, and it is fetched again")
    return path


def _from_archive(url: str) -> Path:
    if not urlsplit(url).path.lower().endswith(ARCHIVES):
        raise UserError(f"{url}: expected an archive of a model's folder ({', '.join(ARCHIVES)})")
    archive = _fetched(url)
    folder = archive.with_name("unpacked")
    with hold(archive.with_name(".lock"), None, "set SPKEXP_CACHE to a folder that can be written"):
        if not folder.is_dir():
            work = archive.with_name("unpacking")
            shutil.rmtree(work, ignore_errors=True)  # of a process that was killed
            work.mkdir()
            try:
                archives.unpack(archive, work)
                work.rename(folder)
            finally:
                shutil.rmtree(work, ignore_errors=True)
    inner = [path for path in folder.iterdir() if path.is_dir()]
    alone = len(inner) == 1 and len(list(folder.iterdir())) == 1
    return inner[0] if alone else folder


def _from_hub(source: str, revision: str | None) -> Path:
    name, _, stated = source.partition("@")
    if stated and revision and stated != revision:
        raise UserError(f"{source}: names the revision {stated}, and revision={revision} another one; leave one out")
    return _snapshot(source, name, revision or stated or None, WANTED)


def _file_of_hub(text: str) -> Path:
    parts = text.removeprefix("hf:").split("/", 2)
    if len(parts) != 3 or not all(parts):
        raise UserError(f"{text}: expected hf:USER/NAME/FILE")
    user, repository, path = parts
    repository, _, revision = repository.partition("@")
    found = _snapshot(text, f"{user}/{repository}", revision or None, (path,)) / path
    if not found.is_file():
        raise UserError(f"{text}: {user}/{repository} has no file {path}")
    return found


def _snapshot(source: str, name: str, revision: str | None, wanted: tuple[str, ...]) -> Path:
    """The folder with the `wanted` files of a repository: as the hub has it now, or where it cannot be reached (or
    HF_HUB_OFFLINE is set) as it was the last time. Raises UserError."""
    from huggingface_hub import errors, snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(wanted)))
    except errors.GatedRepoError as error:
        raise UserError(f"{source}: its owner grants access on request; ask there, then: hf auth login") from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(
            f"{source}: there is no such path here and no such repository on the hub (for a private one: hf auth login)"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UserError(f"{source}: the repository has no revision {revision}") from error
    except errors.HFValidationError as error:
        raise UserError(f"{source}: is neither a path here nor an id of the hub, user/name") from error
    except errors.LocalEntryNotFoundError as error:  # neither there nor here
        behind = error.__cause__ or error
        cause = (str(behind).splitlines() or [type(behind).__name__])[0]
        raise UserError(
            f"{source}: is no path here, the hub cannot be asked ({cause}), and its cache has it not; where there is a "
            f"network: hf download {name}"
        ) from error
    except OSError as error:
        raise UserError(f"{source}: cannot be kept: {error}; set HF_HOME to a folder with room") from error
