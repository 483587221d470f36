"""Make small text corpora in several domains from Debian packages and Python's standard library.

    python scripts/corpora.py OUT_DIR [--domains english,python,german,logs]

writes OUT_DIR/DOMAIN.jsonl, lines of {"text": ..., "domain": ...}, and OUT_DIR/domains.jsonl with
the same number of passages of each domain, shuffled. The texts have licences of their own and are
read from the packages: nothing of them belongs in a repository, except english and jargon, which
are out of copyright and in the public domain.
"""

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from corpus_readers import DOMAINS, reflow

PASSAGE_CHARS = 800


class CorpusError(Exception):
    """A corpus that cannot be made here."""


def passages(name: str, scratch: Path) -> list[str]:
    """All passages of a domain, in the order of the source, without repeats."""
    domain = DOMAINS[name]
    root = _unpacked(domain.package, scratch) if domain.package else scratch
    found: dict[str, None] = {}
    for paragraphs in domain.read(root):
        passage = ""
        for paragraph in [*paragraphs, ""]:
            longer = f"{passage}{domain.joint}{paragraph}" if passage else paragraph
            if paragraph and len(longer) <= PASSAGE_CHARS:
                passage = longer
                continue
            if len(passage) >= PASSAGE_CHARS // 8:
                found[passage] = None
            passage = paragraph[:PASSAGE_CHARS]
    return list(found)


def _unpacked(package: str, scratch: Path) -> Path:
    """Fetch a Debian package, with package lists of our own where the system has none."""
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise CorpusError(
            f"this text comes from the Debian package {package}, and apt-get is not here: "
            "run on Debian or Ubuntu, or choose --domains python"
        )
    root, lists = scratch / package, scratch / "apt"
    if not lists.is_dir() and _apt([], ["download", package], scratch):
        (lists / "lists/partial").mkdir(parents=True)
        (lists / "cache/archives/partial").mkdir(parents=True)
        _apt(_private(lists), ["update"], scratch)
    if lists.is_dir() and (error := _apt(_private(lists), ["download", package], scratch)):
        raise CorpusError(f"apt-get cannot download {package}: {reflow(error)}")
    archive = next(scratch.glob(f"{package}_*.deb"))
    subprocess.run(["dpkg-deb", "-x", str(archive), str(root)], check=True)
    return root


def _private(lists: Path) -> list[str]:
    return ["-o", f"Dir::State::Lists={lists}/lists", "-o", f"Dir::Cache={lists}/cache"]


def _apt(options: list[str], command: list[str], folder: Path) -> str:
    """Run apt-get; the error text, empty on success."""
    sandbox = options if options else ["-o", "APT::Sandbox::User=root"]
    run = subprocess.run(["apt-get", "-qq", *sandbox, *command], cwd=folder, capture_output=True, text=True)
    return run.stderr or "unknown error" if run.returncode else ""


def write(folder: Path, names: list[str], seed: int) -> dict[str, tuple[int, int]]:
    """Write one file per domain and the balanced mixture; returns passages and characters."""
    texts: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name in names:
            texts[name] = passages(name, Path(scratch))
    folder.mkdir(parents=True, exist_ok=True)
    rows = {n: [{"text": t, "domain": n} for t in found] for n, found in texts.items()}
    draw = random.Random(seed)
    each = min(len(found) for found in rows.values())
    mixture = [row for found in rows.values() for row in draw.sample(found, each)]
    draw.shuffle(mixture)
    for name, lines in {**rows, "domains": mixture}.items():
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return {name: (len(found), sum(map(len, found))) for name, found in texts.items()}


def main() -> int:
    """Read the arguments, write the corpora and print what they hold."""
    parser = argparse.ArgumentParser(description="Make small text corpora in several domains.")
    parser.add_argument("out_dir", type=Path, metavar="OUT_DIR")
    parser.add_argument("--domains", default=",".join(DOMAINS), help=f"of {', '.join(DOMAINS)}")
    parser.add_argument("--seed", type=int, default=0, help="for the mixture in domains.jsonl")
    options = parser.parse_args()
    names = options.domains.split(",")
    unknown = [name for name in names if name not in DOMAINS]
    if unknown:
        parser.error(f"no domain {unknown[0]!r}: choose from {', '.join(DOMAINS)}")
    try:
        sizes = write(options.out_dir, names, options.seed)
    except CorpusError as error:
        print(f"corpora.py: {error}", file=sys.stderr)
        return 1
    for name, (count, characters) in sizes.items():
        print(f"{name:15} {count:6,} passages {characters:10,} characters")
    return 0


if __name__ == "__main__":
    sys.exit(main())
