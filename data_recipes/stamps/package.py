"""Debian's package ``tuxpaint-stamps-default``: getting it, unpacking it, telling which file belongs to which stamp.

A stamp is a caption file ``NAME.txt`` and whatever shares its name: an image (``NAME.png`` or ``NAME.svg``), a sound
effect (``NAME.ogg``, in a given language ``NAME_LANG.ogg``) and speech (``NAME_desc.ogg`` in English,
``NAME_desc_LANG.ogg``). The first line of the caption file is English, each further one ``LANG.utf8=caption``.
"""

import gzip
import io
import lzma
import re
import shutil
import subprocess
import tarfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

PACKAGE = "tuxpaint-stamps-default"
LICENSE = "GPL-2"
"""What the package's copyright file says of all its files."""

HOW_TO_GET = (
    f"get Debian's package {PACKAGE} (on Debian or Ubuntu: apt-get download {PACKAGE}; elsewhere: download its .deb "
    "with a browser) and pass it with --source FILE.deb, or --source FOLDER once it is unpacked or installed (/usr)"
)

_STAMPS_FOLDER = Path("share/tuxpaint/stamps")
_ENGLISH = "en"
_TAMIL_LETTER = re.compile("[\u0b80-\u0bff]")


@dataclass(frozen=True)
class Clip:
    """One recording of a stamp.

    Attributes:
        path: the sound file.
        language: of the caption that goes with it ("en", "fr", "pt_BR" ...).
        kind: "speech" (the caption read aloud) or "effect" (the thing's sound; of a digit or letter, its name).
    """

    path: Path
    language: str
    kind: str


@dataclass
class Stamp:
    """One thing: captions by language ("en" always), an image where there is one, and its recordings."""

    name: str
    captions: dict[str, str]
    picture: Path | None = None
    clips: list[Clip] = field(default_factory=list)


@dataclass
class Package:
    """What was read: the stamps by name (their path below the stamps folder), and what was left out, by reason."""

    source: str
    stamps: dict[str, Stamp]
    dropped: Counter[str]


def fetch(folder: Path) -> Path:
    """Download the package into ``folder`` with ``apt-get download``; returns the ``.deb``.

    Raises:
        RuntimeError: there is no apt-get here, or it fails; the message says how to get the package otherwise.
    """
    if shutil.which("apt-get") is None:
        raise RuntimeError(f"there is no apt-get here to download the stamps with: {HOW_TO_GET}")
    done = subprocess.run(["apt-get", "download", PACKAGE], cwd=folder, capture_output=True, text=True, check=False)
    files = sorted(folder.glob("*.deb"))
    if done.returncode or not files:
        raise RuntimeError(f"'apt-get download {PACKAGE}' failed ({done.stderr.strip()}): {HOW_TO_GET}")
    return files[0]


def unpack(deb: Path, folder: Path) -> None:
    """Unpack the data of a Debian package into ``folder``.

    Raises:
        ValueError: the file is no Debian package, is cut short, or is compressed in a way that Python cannot read.
    """
    for name, content in _archive_members(deb):
        if name.startswith("data.tar"):
            try:
                with tarfile.open(fileobj=io.BytesIO(content)) as archive:
                    archive.extractall(folder, filter="data")
            except (tarfile.TarError, lzma.LZMAError, EOFError, OSError) as error:
                raise ValueError(
                    f"cannot unpack {name} in {deb}: {error}. If the file is whole, unpack it with "
                    f"'dpkg-deb -x {deb.name} FOLDER' and pass --source FOLDER"
                ) from error
            return
    raise ValueError(f"{deb} is not a whole Debian package (it has no data.tar): {HOW_TO_GET}")


def _archive_members(path: Path) -> list[tuple[str, bytes]]:
    """Read a Unix ``ar`` archive, which is what a ``.deb`` is."""
    members: list[tuple[str, bytes]] = []
    with path.open("rb") as file:
        if file.read(8) != b"!<arch>\n":
            return members
        while len(header := file.read(60)) == 60:
            size = int(header[48:58])
            members.append((header[:16].decode("ascii").rstrip(" /"), file.read(size)))
            file.seek(size % 2, io.SEEK_CUR)
    return members


def read_package(folder: Path) -> Package:
    """Read the stamps below ``folder``: the stamps folder itself, or where the package was unpacked or installed.

    Raises:
        FileNotFoundError: the folder is missing.
        ValueError: no stamp is in it.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder or .deb {folder}: {HOW_TO_GET}")
    candidates = (folder / "usr" / _STAMPS_FOLDER, folder / _STAMPS_FOLDER, folder / "stamps")
    root = next((path for path in candidates if path.is_dir()), folder)
    files = sorted(path for path in root.rglob("*") if path.is_file())
    dropped: Counter[str] = Counter()
    stamps = _read_captions(root, files, dropped)
    _add_pictures(stamps, root, files, dropped)
    if not any(stamp.picture for stamp in stamps.values()):
        raise ValueError(
            f"no stamps in {root}: expected the contents of {PACKAGE}, that is folders such as animals/birds with "
            f"NAME.txt (captions), NAME.png or NAME.svg, NAME_desc_LANG.ogg. {HOW_TO_GET}"
        )
    _add_clips(stamps, root, files, dropped)
    return Package(f"Debian package {PACKAGE}, {_version(root)}", stamps, dropped)


def _version(root: Path) -> str:
    changelog = root.parents[1] / "doc" / PACKAGE / "changelog.Debian.gz"
    if not changelog.is_file():
        return "version unknown (no changelog beside the stamps)"
    match = re.search(r"\((.+?)\)", gzip.decompress(changelog.read_bytes()).decode("utf-8"))
    return f"version {match[1]}" if match else "version unknown (changelog without one)"


def _name(path: Path, root: Path) -> str:
    return path.relative_to(root).with_suffix("").as_posix()


def _read_captions(root: Path, files: list[Path], dropped: Counter[str]) -> dict[str, Stamp]:
    stamps = {}
    for path in files:
        if path.suffix != ".txt":
            continue
        try:
            lines = path.read_bytes().decode("utf-8-sig").splitlines()
        except UnicodeDecodeError:
            dropped["caption file is not UTF-8"] += 1
            continue
        captions = _parse_captions(lines, dropped)
        if _ENGLISH in captions:
            stamps[_name(path, root)] = Stamp(_name(path, root), captions)
        else:
            dropped["caption file without an English caption"] += 1
    return stamps


def _parse_captions(lines: list[str], dropped: Counter[str]) -> dict[str, str]:
    captions: dict[str, str] = {}
    for number, line in enumerate(lines):
        language, mark, text = (_ENGLISH, "=", line) if number == 0 else line.partition(".utf8=")
        if not line.strip():
            continue
        caption = clean_caption(text)
        if not mark:
            dropped["caption line that is not LANG.utf8=caption"] += 1
        elif not any(character.isalnum() for character in caption):
            dropped["caption without a letter or digit"] += 1
        elif language == "ta" and not _TAMIL_LETTER.search(caption):
            # The package's Tamil was converted to UTF-8 as if its legacy font encoding had been Latin-1.
            dropped["Tamil caption in a broken encoding"] += 1
        else:
            captions[language] = caption
    return captions


def clean_caption(text: str) -> str:
    """Single spaces, no control characters, no spelled-out tab (all of which the package has here and there)."""
    text = re.sub("[\x00-\x08\x0e-\x1f\x7f-\x9f]", "", text.replace("\\t", " "))
    return " ".join(text.split())


def _add_pictures(stamps: dict[str, Stamp], root: Path, files: list[Path], dropped: Counter[str]) -> None:
    for path in files:  # sorted, so of a pair the .png comes first and stays: it needs no drawing
        if path.suffix not in (".png", ".svg"):
            continue
        name = _name(path, root)
        if name not in stamps:
            mirrored = name.removesuffix("_mirror") in stamps
            dropped["mirrored picture of another stamp" if mirrored else "picture without a caption file"] += 1
        elif stamps[name].picture:
            dropped["second picture (.svg) of the same stamp"] += 1
        else:
            stamps[name].picture = path
    dropped["picture missing (the stamp's captions and sounds stay)"] += sum(not s.picture for s in stamps.values())


def _add_clips(stamps: dict[str, Stamp], root: Path, files: list[Path], dropped: Counter[str]) -> None:
    languages = {language.lower(): language for stamp in stamps.values() for language in stamp.captions}
    for path in files:
        if path.suffix not in (".ogg", ".wav"):
            continue
        name = re.sub(r"(\.ogg|\.wav)+$", "", path.relative_to(root).as_posix())  # one file ends in .ogg.ogg
        owner, language, kind = _owner(name, stamps, languages)
        if owner is None:
            dropped["sound of no stamp"] += 1
        elif any((clip.language, clip.kind) == (language, kind) for clip in owner.clips):
            dropped["second file of the same recording"] += 1
        else:
            owner.clips.append(Clip(path, language, kind))


def _owner(name: str, stamps: dict[str, Stamp], languages: dict[str, str]) -> tuple[Stamp | None, str, str]:
    """Whose recording a file name says it is: the stamp (None if nobody's), the language and the kind."""
    if name in stamps:
        return stamps[name], _ENGLISH, "effect"
    speech = re.fullmatch("(.+)_desc(?:_(.+))?", name)
    if speech and speech[1] in stamps:
        code = speech[2] or _ENGLISH
        return stamps[speech[1]], languages.get(code.lower(), code), "speech"
    for match in re.finditer("_", name):
        base, code = name[: match.start()], name[match.end() :].lower()
        if base in stamps and code in languages:
            return stamps[base], languages[code], "effect"
    return None, "", ""
