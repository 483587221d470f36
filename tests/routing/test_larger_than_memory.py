"""Text through a checkpoint four times larger than what memory may still grow by."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

import moeify
from tests.families.published_models import tiny
from tests.routing.test_low_memory import TEXT, close
from tests.warming.mixtures import with_tokenizer

TOO_MUCH = 77
_TEXT = {"dataset": str(TEXT), "seq_len": 32}
_IGNORED = (
    "source",
    "output",
    "seconds",
    "collect_seconds",
    "fit_seconds",
    "train_seconds",
    "layer_by_layer",
    "warnings",
)


def saved(folder: Path, layers: int, width: int) -> Path:
    """A mixture with ``layers`` layers of 12.5 MB where ``width`` is 1,024."""
    model = tiny(
        "qwen3_moe",
        tied=False,
        hidden_size=256,
        moe_intermediate_size=width,
        num_experts=8,
        num_hidden_layers=layers,
        mlp_only_layers=[],
        vocab_size=2048,
        max_position_embeddings=64,
    )
    model.to(torch.bfloat16).save_pretrained(folder)
    return with_tokenizer(folder)


def figures(folder: Path, work: Path, low_memory: bool) -> list[dict]:
    """What three commands report of one checkpoint."""
    reports = (
        moeify.inspect(folder, max_tokens=128, low_memory=low_memory, **_TEXT),
        moeify.warmup(
            folder,
            work / f"w-{low_memory}",
            steps=0,
            fit="none",
            fit_tokens=256,
            eval_tokens=128,
            low_memory=low_memory,
            device="cpu",
            **_TEXT,
        ),
        moeify.prune(folder, work / f"p-{low_memory}", keep=4, max_tokens=256, low_memory=low_memory, **_TEXT),
    )
    return [{k: v for k, v in report.to_dict().items() if k not in _IGNORED} for report in reports]


def main(big: Path, small: Path, work: Path) -> None:
    """Print the figures of ``big``; end where memory grows by more than a fourth of its size."""
    torch.set_num_threads(1)
    figures(small, work / "trial", True)  # what is imported and compiled on the way is not counted
    most = held() + (big / "model.safetensors").stat().st_size // 4
    threading.Thread(target=watch, args=(most,), daemon=True).start()
    print(json.dumps(figures(big, work, True)))


def held() -> int:
    """Bytes that this process has; pages of files, which can be dropped, are not among them."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in status if line.startswith("RssAnon"))


def watch(most: int) -> None:
    """A limit on memory. RLIMIT_DATA and RLIMIT_AS count the pages of files that are mapped."""
    while held() <= most:
        time.sleep(0.002)
    os._exit(TOO_MUCH)


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", __name__, *map(str, arguments)]
    # Of its compiled kernels, one for each number of rows, torch keeps up to 1,024: 80 MB on some processors.
    environment = os.environ | {"LRU_CACHE_CAPACITY": "1"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@pytest.mark.slow
def test_three_commands_finish_with_a_fourth_of_the_weights(tmp_path: Path) -> None:
    big, small = saved(tmp_path / "big", 24, 1024), saved(tmp_path / "small", 2, 64)
    done = run(big, small, tmp_path / "layers")
    assert done.returncode == 0, done.stderr
    expected = figures(big, tmp_path / "free", False)
    for one, two in zip(json.loads(done.stdout), json.loads(json.dumps(expected)), strict=True):
        assert close(one, two)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
