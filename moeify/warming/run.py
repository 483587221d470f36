"""Where a training run keeps its checkpoints, and whether it can be continued."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from moeify.checkpoint.files import SourceFiles
from moeify.checkpoint.interruption import Interruptions, Kept, keeping
from moeify.checkpoint.json_text import read_json
from moeify.checkpoint.replacing import remove_partial, replacing
from moeify.checkpoint.staging import output_errors
from moeify.errors import ConfigError, OutputError
from moeify.families.mixture import Mixture
from moeify.provenance.config import WITHOUT_TRACE
from moeify.routing.data import Blocks
from moeify.warming.config import WarmupConfig
from moeify.warming.sharding import uses_fsdp

TRAINED_FILE = "trained.safetensors"
_STATE_FILE = "trainer_state.json"  # transformers writes it last
_RUN_FILE = "run.json"
_MAY_CHANGE = (*WITHOUT_TRACE, "resume", "plot", "device", "save_steps", "reference", "dataset")


def is_main_process() -> bool:
    """Whether this process writes and reports: the first of those that torchrun started."""
    return int(os.environ.get("RANK", "0")) == 0


def world_size() -> int:
    """Processes that torchrun or accelerate started, 1 without them."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def leave_group() -> None:
    """Close the process group of training before Python ends, whose end must not meet the group's threads."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        gc.collect()  # the Trainer's cycles hold the group
        dist.destroy_process_group()


def per_step(config: WarmupConfig, blocks: Blocks) -> int:
    """Tokens of a training step, padding included, in all processes."""
    return config.batch * config.accumulate * world_size() * blocks.seq_len


def run_folder(output: Path) -> Path:
    """The folder beside ``output`` that holds checkpoints of the run until it is done."""
    return output.resolve().with_name(f"{output.resolve().name}.warmup")


def open_run(folder: Path, config: WarmupConfig, view: Mixture, blocks: Blocks) -> None:
    """Make ``folder`` ready: empty for a new run, as it was left for one that is resumed.

    Raises ``OutputError`` where an interrupted run would be lost, and ``ConfigError`` where
    there is nothing to resume or the run had other options, data or routers.
    """
    state = _fingerprint(config, view, blocks)
    if config.resume:
        if not (folder / _RUN_FILE).is_file():
            raise ConfigError(f"there is no interrupted run to resume in {folder}", "leave --resume out")
        found = read_json(folder / _RUN_FILE)
        for key, value in state.items():
            if found.get(key) != value:
                raise ConfigError(
                    f"the run in {folder} was started with other {key}",
                    "give the same options again, or start anew with --force",
                )
        return
    if not is_main_process():
        return
    remove_partial(folder / _RUN_FILE)
    if (folder / _RUN_FILE).is_file() and not config.force and last_checkpoint(folder):
        raise OutputError(
            f"{folder} holds an interrupted run", "continue it with --resume, or start anew with --force"
        )
    if folder.exists():
        if not (folder / _RUN_FILE).is_file() and any(folder.iterdir()):
            raise OutputError(
                f"{folder} is in the way: checkpoints of the run would go there", "move it, or choose another output"
            )
        shutil.rmtree(folder)
    with kept_if_resumable(folder), output_errors(folder):
        folder.mkdir(parents=True)
        with replacing(folder / _RUN_FILE) as partial:
            partial.write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")


def last_checkpoint(run_folder: Path) -> Path | None:
    """The newest complete checkpoint of a run; an unfinished one, left by a kill, is removed."""
    found = sorted(run_folder.glob("checkpoint-*"), key=lambda p: int(p.name.rsplit("-", 1)[1]))
    for path in reversed(found):
        if (path / TRAINED_FILE).is_file() and _is_whole(path / _STATE_FILE):
            return path
        shutil.rmtree(path)
    return None


def _is_whole(state: Path) -> bool:
    try:
        json.loads(state.read_bytes())
    except (OSError, ValueError):
        return False
    return True


@contextmanager
def kept_if_resumable(folder: Path) -> Iterator[None]:
    """A block whose failure removes the run's folder, unless it holds a checkpoint to resume."""
    with keeping(lambda: _resumable(folder)):
        try:
            yield
        except BaseException:
            with Interruptions():
                close_run(folder, done=False)
            raise


def _resumable(folder: Path) -> Kept | None:
    saved = last_checkpoint(folder)
    if saved is None:
        return None
    return Kept(what=f"{folder} holds the run up to step {saved.name.rsplit('-', 1)[1]}", option="--resume")


def unsaved(config: WarmupConfig) -> Kept | None:
    """What to say of a training that is interrupted before its first checkpoint; None where that is the first step."""
    steps = min(config.save_steps, config.steps)
    if steps < 2:
        return None
    what = f"nothing was written: the run's first checkpoint comes after {steps} steps"
    return Kept(what=what, option=f"--save-steps={max(1, steps // 10)}")


def close_run(folder: Path, *, done: bool) -> None:
    """Remove ``folder`` where it is no longer needed: the run is done, or it saved nothing."""
    if is_main_process() and (done or last_checkpoint(folder) is None):
        shutil.rmtree(folder, ignore_errors=True)


def _fingerprint(config: WarmupConfig, view: Mixture, blocks: Blocks) -> dict[str, str]:
    options = {k: v for k, v in asdict(config).items() if k not in _MAY_CHANGE}
    digest = hashlib.sha256()
    with SourceFiles() as files:
        for layer in view.moe_layers:
            stored = view.checkpoint[view.router_name(layer)]
            digest.update(files.read(stored.path, stored.start, stored.nbytes))
    return {
        "options": json.dumps(options, sort_keys=True, default=str),
        "data": blocks.fingerprint,
        "routers": digest.hexdigest(),
        "processes": f"{world_size()}{', sharded' * uses_fsdp()}",
    }
