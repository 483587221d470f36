"""How each text corpus is read from its unpacked Debian package, as lists of paragraphs."""

import gzip
import re
import struct
import subprocess
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

_GERMAN_FORTUNES = [
    *("anekdoten", "computer", "letzteworte", "mathematiker", "murphy", "regeln", "sprueche"),
    *("stilblueten", "tips", "unfug", "witze", "wusstensie", "zitate"),
]
_NO_PROSE_SECTIONS = re.compile(
    r"SIEHE|ÜBERSETZUNG|AUTOR|COPYRIGHT|VOIR|TRADUCTION|AUTEUR|KOLOPHON|COLOPHON|SYNOPSIS|ÜBERSICHT"
)


@dataclass(frozen=True, kw_only=True)
class Domain:
    """One corpus: its Debian package, and the texts in it as lists of paragraphs."""

    package: str | None
    read: Callable[[Path], Iterable[list[str]]]
    joint: str = " "


def _bible(root: Path) -> Iterator[list[str]]:
    """Chapters as lists of verses, from the `bible` program's block-compressed file."""
    data = (root / "usr/lib/bible.data").read_bytes()
    count = struct.unpack_from(">I", data, 0x58)[0]
    starts = struct.unpack_from(f">{count}I", data, 0x5C)
    text = b""
    for start, end in zip(starts, (*starts[1:], len(data)), strict=True):
        # Each block is a .Z stream without its three magic bytes.
        block = b"\x1f\x9d\x90" + data[start:end]
        text += subprocess.run(["gzip", "-dc"], input=block, capture_output=True, check=True).stdout
    chapters: dict[str, list[str]] = {}
    for line in text.decode("latin-1").splitlines():
        verse = re.match(r"(\S+\d+):\d+ (.+)", line)
        if verse:
            chapters.setdefault(verse[1], []).append(verse[2].strip())
    yield from chapters.values()


def _jargon(root: Path) -> Iterator[list[str]]:
    """Entries as paragraphs, the first one led by the head word."""
    text = gzip.decompress((root / "usr/share/dictd/jargon.dict.dz").read_bytes()).decode()
    for entry in re.split(r"\n(?=\S)", text):
        head, _, body = entry.partition("\n")
        body = re.sub(r"^ (/|\S+\.).*\n", "", body)
        paragraphs = [reflow(part) for part in re.split(r"\n\s*\n", body) if len(part.split()) > 1]
        if paragraphs and not head.startswith("00-database"):
            links_resolved = [re.sub(r"\{\s*|\s*\}", "", part) for part in paragraphs]
            yield [f"{head}: {links_resolved[0]}", *links_resolved[1:]]


def _stdlib(_: Path) -> Iterator[list[str]]:
    """Modules as blocks of code between blank lines."""
    root = Path(sysconfig.get_path("stdlib"))
    packages = [
        *("asyncio", "collections", "concurrent", "email", "http", "importlib", "json"),
        *("logging", "multiprocessing", "unittest", "urllib", "xml"),
    ]
    files = [root.glob("*.py"), *((root / name).rglob("*.py") for name in packages)]
    for file in sorted(path for group in files for path in group):
        if "test" not in file.relative_to(root).parts:
            yield re.split(r"\n\n+", file.read_text(encoding="utf-8", errors="replace").strip())


def _fortunes(folder: str, names: list[str] | None = None) -> Callable[[Path], Iterator[list[str]]]:
    def read(root: Path) -> Iterator[list[str]]:
        for file in sorted((root / "usr/share/games/fortunes" / folder).iterdir()):
            if file.is_symlink() or file.suffix == ".dat" or (names and file.name not in names):
                continue
            items = file.read_text(encoding="utf-8", errors="ignore").split("\n%\n")
            quotes = (reflow(re.sub(r"\n\s*-- .*", "", f"\n{item}")) for item in items)
            yield [quote for quote in quotes if len(quote) > 40]

    return read


def _manuals(language: str) -> Callable[[Path], Iterator[list[str]]]:
    def read(root: Path) -> Iterator[list[str]]:
        for file in sorted((root / "usr/share/man" / language).rglob("*.gz")):
            yield _roff_paragraphs(gzip.decompress(file.read_bytes()).decode(errors="ignore"))

    return read


def _roff_paragraphs(source: str) -> list[str]:
    """The running text of a manual page: no tables, examples, headings, synopsis or credits."""
    source = re.sub(r"^\.(nf|EX|TS)\b.*?^\.(fi|EE|TE)\b.*?$", ".PP", source, flags=re.M | re.S)
    sections = re.split(r"^\.SH ", source, flags=re.M)[1:]
    prose = [text for text in sections if not _NO_PROSE_SECTIONS.match(text.lstrip('" '))]
    lines = [line for text in prose for line in text.split("\n")[1:]]
    plain = []
    for line in lines:
        font = re.match(r"\.(B|I|BR|IR|RB|RI|BI|IB) (.*)", line)
        macro = line.startswith((".", "'"))
        plain.append(font[2].replace('"', "") if font else "" if macro else line)
    text = re.sub(r"\\f(\[[^\]]*\]|\(..|.)|\\[&/,|^c:]|\\s[+-]?\d", "", "\n".join(plain))
    for escape, character in {r"\-": "-", r"\ ": " ", r"\(aq": "'", r"\(bu": "", r"\e": "/"}.items():
        text = text.replace(escape, character)
    paragraphs = [reflow(part) for part in re.split(r"\n\s*\n", text)]
    return [part for part in paragraphs if len(part) > 60 and "\\" not in part]


def _logs(root: Path) -> Iterator[list[str]]:
    """One daemon's log lines each, without the comments that the test suite adds."""
    folder = root / "usr/lib/python3/dist-packages/fail2ban/tests/files/logs"
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
        yield [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def reflow(text: str) -> str:
    """The text on one line, without the soft hyphens that line breaks leave behind."""
    return " ".join(text.replace("\xad", "").split())


DOMAINS = {
    "english": Domain(package="bible-kjv-text", read=_bible),
    "python": Domain(package=None, read=_stdlib, joint="\n\n"),
    "german": Domain(package="fortunes-de", read=_fortunes("de", _GERMAN_FORTUNES), joint="\n"),
    "logs": Domain(package="fail2ban", read=_logs, joint="\n"),
    "jargon": Domain(package="dict-jargon", read=_jargon, joint="\n"),
    "russian": Domain(package="fortunes-ru", read=_fortunes("ru"), joint="\n"),
    "french-manuals": Domain(package="manpages-fr", read=_manuals("fr"), joint="\n"),
    "german-manuals": Domain(package="manpages-de", read=_manuals("de"), joint="\n"),
}
