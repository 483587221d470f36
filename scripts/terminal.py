"""Writes docs/terminal.svg and tokens.svg: commands on the small GPT-2 that moeify ships, as they print.

python scripts/terminal.py [--check]

--check fails where other words are printed now, whatever was measured. The commands are really run,
in a temporary folder, which takes about a minute.
"""

from __future__ import annotations

import html
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "moeify" / "demo"
COLUMNS = 94
FIVE = (
    ("upcycle demo-gpt2 moe --experts 8 --noise 0", "", 99),
    ("verify demo-gpt2 moe", "", 5),
    ("warmup moe warm --dataset text.jsonl --domain-column domain --steps 0", "", 8),
    ("inspect warm --dataset text.jsonl --domain-column domain", "routing of", 6),
    ("prune warm half --keep 4 --by reap --dataset text.jsonl", "", 6),
)
TEXT = (
    "And God said unto Moses, Speak unto the children of Israel."
    " Java is a programming language: hackers use it for Unix."
)
TOKENS = ((f"inspect warm --text {shlex.quote(TEXT)} --layers 1", "tokens by", 4),)
PICTURES = {"terminal": ("Five commands of moeify", FIVE), "tokens": ("Tokens, coloured by their experts", TOKENS)}
"""By file, a title and commands with the beginning of the first line that is shown and how many are; what is left out
is an ellipsis."""
GREYS_AND_COLOURS = (0x6E7681, 0xFF7B72, 0x3FB950, 0xD29922, 0x58A6FF, 0xBC8CFF, 0x39C5CF, 0xB1BAC4)
THEME = TerminalTheme((22, 27, 34), (230, 237, 243), [(c >> 16, c >> 8 & 255, c & 255) for c in GREYS_AND_COLOURS])
# No font is fetched: whoever looks has a monospaced one.
FORMAT = """\
<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<title>TITLE, as they print</title>
<style>
.{unique_id}-matrix {{ font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace;
  font-size: {char_height}px; line-height: {line_height}px; font-variant-east-asian: full-width; }}
.{unique_id}-title {{ font-size: 18px; font-weight: bold; font-family: system-ui, sans-serif; }}
{styles}
</style>
<defs><clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}" /></clipPath>{lines}</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">{matrix}</g>
</g>
</svg>
"""


def said(command: str, folder: Path) -> Iterator[str]:
    """The lines that ``moeify command`` prints in ``folder``, with their colours; progress left out."""
    env = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    env |= {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    env |= {"FORCE_COLOR": "1", "COLORTERM": "truecolor", "COLUMNS": str(COLUMNS)}
    run = subprocess.run(
        [sys.executable, "-m", "moeify", *shlex.split(command)], cwd=folder, env=env, capture_output=True, text=True
    )
    if run.returncode:
        sys.exit(f"moeify {command} failed: {run.stderr[-500:]}")
    yield from run.stdout.splitlines()
    for line in run.stderr.splitlines():
        last = line.rpartition("\x1b[2K")[2]
        if any(word in last for word in ("warning:", "next:")):
            yield last


def shown(lines: list[str], begin: str, count: int) -> Iterator[Text]:
    """``count`` lines from the one on that begins with ``begin``, between ellipses where there are more."""
    texts = [Text.from_ansi(line) for line in lines]
    first = next(place for place, text in enumerate(texts) if text.plain.startswith(begin))
    if first:
        yield Text("...", style="bright_black")
    yield from texts[first : first + count]
    if first + count < len(texts):
        yield Text("...", style="bright_black")


def picture(title: str, commands: tuple[tuple[str, str, int], ...], folder: Path) -> str:
    """Run ``commands`` in ``folder`` and draw what they print."""
    console = Console(record=True, file=StringIO(), width=COLUMNS, force_terminal=True, color_system="truecolor")
    for number, (command, begin, count) in enumerate(commands):
        console.print(Text(("\n" if number else "") + "$ ", style="green").append(f"moeify {command}", style="bold"))
        for text in shown(list(said(command, folder)), begin, count):
            text.rstrip()
            console.print(text, no_wrap=True, overflow="crop")
    return console.export_svg(
        title="moeify", theme=THEME, code_format=FORMAT.replace("TITLE", title), unique_id="moeify"
    )


def words(drawn: str) -> str:
    """What stands in a picture, without bars, space, colours and what was measured."""
    text = "".join(html.unescape(part) for part in re.findall(r"<text[^>]*>([^<]*)</text>", drawn))
    return re.sub(r"\d+\.\d+(e-\d+)?|[\u2581-\u2588]+|\s+", "", text)


def main() -> None:
    """Run the commands, and write the pictures or compare them; later ones find what earlier ones made."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "demo-gpt2").symlink_to(DEMO / "gpt2")
        (folder / "text.jsonl").symlink_to(DEMO / "text.jsonl")
        for file, (title, commands) in PICTURES.items():
            page, drawn = ROOT / "docs" / f"{file}.svg", picture(title, commands, folder)
            if "--check" not in sys.argv:
                page.write_text(drawn, encoding="utf-8")
            elif words(page.read_text("utf-8")) != words(drawn):
                sys.exit(f"docs/{file}.svg is stale: run python scripts/terminal.py")


if __name__ == "__main__":
    main()
