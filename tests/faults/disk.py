"""Disks that are small or turn read-only, in a mount namespace of their own: neither root's rights nor a spare disk."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest


class Disk:
    """A file system of `megabytes` at `place`, seen by what is started behind `prefix`, and from here as `seen(…)`."""

    def __init__(self, place: Path, megabytes: float) -> None:
        """Skips the test where the system allows nobody to mount."""
        self.place = place
        place.mkdir()
        for program in ("unshare", "nsenter", "mount"):
            if shutil.which(program) is None:
                pytest.skip(f"there is no {program} (util-linux)")
        script = f'mount -t tmpfs -o size={round(megabytes * 1024)}k none "$0" && echo mounted && exec sleep 3600'
        self._holder = subprocess.Popen(
            ["unshare", "-r", "-m", "--propagation", "private", "sh", "-c", script, str(place)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._holder.stdout is not None
        assert self._holder.stderr is not None
        if self._holder.stdout.readline() != "mounted\n":
            pytest.skip(f"nothing can be mounted here: {self._holder.stderr.read().strip()}")
        self.prefix = ["nsenter", "-t", str(self._holder.pid), "-U", "-m", "--preserve-credentials"]

    def seen(self, path: Path) -> Path:
        return Path(f"/proc/{self._holder.pid}/root{path}")

    def do(self, *command: str) -> None:
        subprocess.run([*self.prefix, *command], check=True)

    def fill(self) -> Path:
        """Take all the room that is left; returns the file that takes it."""
        file = self.seen(self.place / "somebody else's.bin")
        status = os.statvfs(self.seen(self.place))
        with file.open("wb", buffering=0) as content:
            content.truncate(0)
            for _ in range(status.f_bavail + 1):
                try:
                    content.write(bytes(status.f_bsize))
                except OSError:
                    break
        return file

    def read_only(self, folder: Path) -> None:
        self.do("mount", "--bind", str(folder), str(folder))
        self.do("mount", "-o", "remount,bind,ro", str(folder))

    def writable(self, folder: Path) -> None:
        self.do("umount", str(folder))

    def close(self) -> None:
        self._holder.kill()
        self._holder.wait()
