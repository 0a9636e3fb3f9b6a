"""Files made wrong: what is sound, with some of its bytes changed, moved, lost, repeated or claimed to be more."""

import struct
from collections.abc import Sequence
from random import Random
from typing import NamedTuple

# Sizes, counts and signs where formats overflow, and what text formats give a meaning to.
NUMBERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 40, (1 << 63) - 1)
WORDS = (
    *(
        b"\0",
        b"\n",
        b"\r\n",
        b",",
        b'"',
        b"'",
        b"\t",
        b" ",
        b"|",
        b"/",
        b"../",
        b"\\",
        b"\xff\xfe",
        b"\xef\xbb\xbf",
        b"#",
    ),
    *(
        b"-1",
        b"nan",
        b"inf",
        b"1e999",
        b"9" * 400,
        b"null",
        b"true",
        b"[]",
        b"{}",
        b"[",
        b"{",
        b"}",
        b":",
        b": ",
        b"- ",
    ),
    *(b"${oc.env:HOME}", b"${a}", b"&a", b"*a", b"!!python/object/apply:os.system", b"_target_", b"os.system", b"???"),
    *(b"0", b"1", b"-0", b"1_0", b"0x7fffffff", b"\xc3\xa4", b"\xf0\x9f\x98\x80", b"id", b"path", b"_args_"),
)
KINDS = ("flip", "number", "word", "cut", "drop", "repeat", "copy", "splice", "zeros")


class Edit(NamedTuple):
    """place and other: where, as parts of the length; amount: how much of it, or which number or word."""

    kind: str
    place: float
    other: float
    amount: int


def edited(content: bytes, edits: Sequence[Edit], donor: bytes = b"") -> bytes:
    """`content` with the edits made one after the other; `donor` is another file, whose parts may come in."""
    for edit in edits:
        size = len(content)
        at, other = int(edit.place * size), int(edit.other * size)
        length = edit.amount % 64 + 1
        match edit.kind:
            case "flip":
                content = (
                    content[:at]
                    + bytes(byte ^ (1 << edit.amount % 8) for byte in content[at : at + 1])
                    + content[at + 1 :]
                )
            case "number":
                form = ("<B", "<H", "<I", "<Q", ">H", ">I", ">Q")[edit.amount % 7]
                width = struct.calcsize(form)
                value = NUMBERS[edit.amount // 7 % len(NUMBERS)] & ((1 << 8 * width) - 1)
                content = content[:at] + struct.pack(form, value) + content[at + width :]
            case "word":
                word = WORDS[edit.amount % len(WORDS)]
                content = content[:at] + word + content[at + (length if edit.amount & 64 else 0) :]
            case "cut":
                content = content[:at]
            case "drop":
                content = content[:at] + content[at + length :]
            case "repeat":
                content = content[:at] + content[at : at + length] * (edit.amount % 200 + 1) + content[at:]
            case "copy":
                content = content[:at] + content[other : other + length] + content[at:]
            case "splice":
                content = content[:at] + donor[int(edit.other * len(donor)) :]
            case "zeros":
                content = content[:at] + bytes(length) + content[at + length :]
        content = content[: 1 << 18]
    return content


def drawn(random: Random, seeds: Sequence[bytes]) -> bytes:
    """One of `seeds` with a few edits."""
    edits = [
        Edit(random.choice(KINDS), random.random() ** random.choice((1, 1, 4)), random.random(), random.getrandbits(16))
        for _ in range(random.choice((1, 1, 2, 3, 5, 8)))
    ]
    return edited(random.choice(seeds), edits, random.choice(seeds))
