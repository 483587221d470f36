"""Run the round trip of docs/hub.md against the Hub stand-in and print its transcript.

python scripts/hub_transcript.py > transcript.txt
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from tests.elsewhere import python_without_moeify  # noqa: E402
from tests.hub.stand_in import TOKEN, HubStandIn, running_hub  # noqa: E402
from tests.real.checkpoints import minilm  # noqa: E402

WARMUP = "moeify warmup moe warm --dataset text.jsonl --steps 0 --fit-tokens 8192 --eval-tokens 4096"
ELSEWHERE = "elsewhere/bin/python"
USE = """\
from sentence_transformers import SentenceTransformer
model = SentenceTransformer("user/minilm-moe", trust_remote_code=True)
one, two, three = model.encode(["A man plays a guitar.", "Somebody makes music.", "Shares fell."])
print(type(model[0].auto_model).__name__, (one @ two).round(3), (one @ three).round(3))
"""


def main() -> None:
    """Print every command, what it says, and what the Hub received."""
    with tempfile.TemporaryDirectory() as name, running_hub() as hub:
        folder = Path(name)
        source = minilm()
        files = {p.relative_to(source).as_posix(): p for p in source.rglob("*") if p.is_file()}
        hub.add("org/minilm", {path: p.read_bytes() for path, p in files.items()})
        mark = _step(hub, folder, "moeify upcycle org/minilm moe --experts 4", 0)
        mark = _step(hub, folder, "moeify push moe user/minilm-moe", mark)
        shutil.copy(REPOSITORY / "moeify" / "demo" / "text.jsonl", folder)
        mark = _step(hub, folder, WARMUP, mark)
        mark = _step(hub, folder, "moeify push warm user/minilm-moe", mark)
        (folder / "use.py").write_text(USE)
        python_without_moeify(folder / "elsewhere")
        mark = _step(hub, folder, f"{ELSEWHERE} -c 'import moeify'", mark, token=False, rc=1)
        print(f"$ cat use.py\n{USE}")
        _step(hub, folder, f"{ELSEWHERE} use.py", mark, token=False)


def _step(hub: HubStandIn, folder: Path, command: str, mark: int, token: bool = True, rc: int = 0) -> int:
    """Who has no token is somebody else: without moeify, with a cache of their own."""
    environment = os.environ | {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(folder / ("home" if token else "other-home")),
        "HF_HUB_DISABLE_XET": "1",
        "COLUMNS": "110",
        "NO_COLOR": "1",
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TQDM_DISABLE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
    }
    environment.pop("HF_TOKEN", None)
    environment.pop("PYTHONPATH", None)
    program, *arguments = shlex.split(command)
    if program == "moeify":
        environment |= {"HF_TOKEN": TOKEN, "PYTHONPATH": str(REPOSITORY)}
        run = [sys.executable, "-m", "moeify", *arguments]
    else:
        run = [str(folder / program), *arguments]
    done = subprocess.run(run, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    said = done.stdout + (done.stderr.splitlines(keepends=True)[-1] if rc else done.stderr)
    assert done.returncode == rc, said
    assert TOKEN not in said
    said = said.replace(hub.url, "http://127.0.0.1:8080")
    print(f"$ {command}")
    print(re.sub(r" +$", "", said, flags=re.MULTILINE).rstrip())
    exchanges = hub.exchanges[mark:]
    sent = sum(exchange.bytes_in for exchange in exchanges)
    received = sum(exchange.bytes_out for exchange in exchanges)
    print(f"[the Hub: {len(exchanges)} requests, {sent:,} bytes in, {received:,} bytes out]\n")
    return len(hub.exchanges)


if __name__ == "__main__":
    main()
