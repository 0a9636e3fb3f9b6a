"""What lies where in a tar of audio files: read from its headers, nothing is unpacked.

Three layouts that people have, told apart by the members that stand beside an audio file KEY.wav (.flac, .mp3, …):
ours and webdataset's KEY.json, whose fields become columns; WeSpeaker's KEY.spk, the speaker; webdataset's KEY.cls or
KEY.txt, the speaker in one word. KEY is what stands before the last dot; labels are also found under what stands
before the first, which is webdataset's key (`a.mic1.wav`, `a.json`).
"""

import json
import logging
import os
import tarfile
from collections import Counter
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple
from urllib.parse import quote

import polars as pl

from spkexp.archives import DAMAGED_TAR, is_plain, refuse_unsafe
from spkexp.errors import UserError

log = logging.getLogger(__name__)

AUDIO = ("wav", "flac", "mp3", "m4a", "ogg", "opus", "aac", "webm")
LABELS = ("json", "spk", "cls", "txt")
MAX_LABEL_BYTES = 1 << 20
SPEAKER_FIELDS = ("speaker", "spk_id", "speaker_id", "spk")
# What the tar itself says, or what would make a row a segment of its file: never taken from a KEY.json.
NOT_COLUMNS = ("id", "path", "offset", "bytes", "start", "stop")
COMPRESSIONS = {b"\x1f\x8b": "gzip -d", b"BZh": "bzip2 -d", b"\xfd7zXZ": "xz -d", b"\x28\xb5\x2f\xfd": "zstd -d --rm"}


class Member(NamedTuple):
    """A file in a tar."""

    name: str
    offset: int  # of its first byte in the tar
    bytes: int


def member_key(utterance: str) -> str:
    """The KEY under which `utterance` lies in a shard: dots, percent signs and control characters, which a key or a
    path in a tar cannot have, become %XX; so does a slash at the beginning. `urllib.parse.unquote` turns it back.
    """
    key = "".join(quote(c, safe="") if c == "%" or ord(c) < 32 or c == "\x7f" else c for c in utterance)
    key = key.replace(".", "%2E")
    return f"%2F{key[1:]}" if key.startswith("/") else key


def index(path: str) -> pl.DataFrame:
    """The utterances of a tar in its order: id, path, offset, bytes, speaker and duration (s), null where nothing
    says it, and a text column for every other field of a KEY.json.

    Raises UserError, which names the tar and the member: not a tar, compressed, empty, cut off; an unsafe name, a link
    or a device among its members; two audio files of one key; an audio file without any label; labels that cannot be
    read.
    """
    audio: dict[str, Member] = {}
    labels: dict[str, dict[str, str | None]] = {}
    others: Counter[str] = Counter()
    try:
        with open(path, "rb") as file:
            for member in members(path, file):
                key, _, suffix = member.name.rpartition(".")
                suffix = suffix.lower()
                if suffix in AUDIO:
                    if key in audio:
                        twins = " and ".join(repr(twin.name) for twin in (audio[key], member))
                        raise UserError(f"{path}: {twins} are two audio files of one key; an utterance has one")
                    audio[key] = member
                elif suffix in LABELS:
                    labels.setdefault(key, {}).update(_labels(path, file, member, suffix))
                else:
                    others[suffix] += 1
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    for suffix, count in others.items():
        log.info("%s: %d members .%s are neither audio nor labels", path, count, suffix)
    if not audio:
        raise UserError(f"{path}: holds no audio file (.{', .'.join(AUDIO)}); remove it")
    rows = [_row(path, key, member, labels) for key, member in audio.items()]
    names = dict.fromkeys(name for row in rows for name in row)
    # Said, not inferred: a column may be empty in one tar and not in the next.
    schema = {name: pl.Int64 if name in ("offset", "bytes") else pl.String for name in names}
    table = pl.DataFrame({name: [row.get(name) for row in rows] for name in names}, schema=schema)
    return table.with_columns(pl.col("duration").cast(pl.Float64, strict=False))


def members(path: str, file: BinaryIO) -> Iterator[Member]:
    """The plain files of a tar, whole and with safe names; hidden ones (macOS's `._x`) are left out. Raises UserError
    as `index`.
    """
    size = os.fstat(file.fileno()).st_size
    if size == 0:
        raise UserError(f"{path}: is empty (0 bytes), not a tar; remove it or make it again")
    head = file.read(6)
    file.seek(0)
    for magic, command in COMPRESSIONS.items():
        if head.startswith(magic):
            raise UserError(
                f"{path}: is compressed, and nothing can be read from its middle; unpack it: {command} {path}"
            )
    count = 0
    name = None
    try:
        tar = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115
        while (member := tar.next()) is not None:
            tar.members = []  # type: ignore[attr-defined]  # it would keep them all
            name = member.name
            _refuse_unsafe(path, member)
            if member.isdir():
                continue
            end = member.offset_data + member.size
            if end > size:
                raise UserError(
                    f"{path}: is cut off: its last member {name!r} ends at byte {end}, the file at {size}; the "
                    f"{count} members before it are whole; copy or make it again"
                )
            count += 1
            if not os.path.basename(name).startswith("."):
                yield Member(name.removeprefix("./"), member.offset_data, member.size)
    except DAMAGED_TAR as error:
        where = f" after {name!r}" if name is not None else ""
        kind = "is cut off or broken" if count else "is no tar, or broken from the beginning"
        raise UserError(
            f"{path}: {kind}{where} ({error}); {count} members before that are whole; copy or make it again"
        ) from None
    _check_end(path, file, tar.offset, size, count, name)


def _check_end(path: str, file: BinaryIO, position: int, size: int, count: int, last: str | None) -> None:
    """tarfile takes whatever is no header for the end. A tar ends by a block of zeros, and by nothing else behind."""
    file.seek(position)
    block = file.read(512)
    if len(block) < 512:
        raise UserError(
            f"{path}: is cut off at byte {size} after its member {last!r}: no end mark; {count} members are whole, "
            f"others may be missing; copy or make it again"
        )
    if block.strip(b"\0"):
        raise UserError(
            f"{path}: is broken at byte {position}, after its member {last!r}: no tar header there; {count} members "
            f"are whole; copy or make it again"
        )
    if file.read(1 << 16).strip(b"\0"):
        raise UserError(
            f"{path}: goes on behind its end mark at byte {position}, as tars do that were simply joined; "
            f"keep them apart, or join them by tar --concatenate"
        )


def _refuse_unsafe(path: str, member: tarfile.TarInfo) -> None:
    refuse_unsafe(path, member.name, is_plain(member))
    try:
        member.name.encode()
    except UnicodeEncodeError:
        raise UserError(f"{path}: refused: the name of its member {member.name!r} is not UTF-8") from None


def _labels(path: str, file: BinaryIO, member: Member, suffix: str) -> dict[str, str | None]:
    """What a label file says; the keys are columns, and 'spk', 'cls' and 'txt' of the files of those names."""
    if member.bytes > MAX_LABEL_BYTES:
        raise UserError(f"{path}: its member {member.name!r} has {member.bytes} bytes: too much for labels")
    file.seek(member.offset)
    content = file.read(member.bytes)
    try:
        if suffix != "json":
            return {f".{suffix}": content.decode().strip() or None}
        fields = json.loads(content)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise UserError(f"{path}: its member {member.name!r} cannot be read as {suffix}: {error}") from None
    if not isinstance(fields, dict):
        raise UserError(f'{path}: its member {member.name!r} is no object; expected {{"speaker": …}}')
    return {name: _text(value) for name, value in fields.items()}


def _text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value or None
    return json.dumps(value, ensure_ascii=False)


def _row(path: str, key: str, member: Member, labels: dict[str, dict[str, str | None]]) -> dict[str, Any]:
    folder, slash, base = key.rpartition("/")
    fields = labels.get(key) or labels.get(f"{folder}{slash}{base.partition('.')[0]}")
    if fields is None:
        raise UserError(
            f"{path}: its member {member.name!r} has no speaker: none of {key}.json, .spk, .cls and .txt is in the tar"
        )
    known = fields.get("id")
    word = fields.get(".txt")
    candidates = [fields.get(".spk"), *(fields.get(name) for name in SPEAKER_FIELDS), fields.get(".cls")]
    # Many words are a transcript.
    candidates.append(word if word is not None and len(word.split()) == 1 else None)
    return {
        "id": known if known is not None and member_key(known) == key else key,
        "path": path,
        "offset": member.offset,
        "bytes": member.bytes,
        "speaker": next((candidate for candidate in candidates if candidate is not None), None),
        "duration": fields.get("duration"),
        **{
            name: value
            for name, value in fields.items()
            if not name.startswith(".") and name not in (*NOT_COLUMNS, *SPEAKER_FIELDS, "duration")
        },
    }
