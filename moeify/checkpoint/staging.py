"""An output folder that appears whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from moeify.checkpoint.interruption import Interruptions, Kept, keeping
from moeify.errors import OutputError

_SCRATCH = ".moeify-states-"
_LONGEST_NAME = 255 - len("..moeify-replaced")


def check_output(output: Path, *sources: Path, force: bool = False) -> None:
    """Raise ``OutputError`` when ``output`` cannot become a new folder beside its ``sources``."""
    resolved = output.resolve()
    if len(os.fsencode(resolved.name)) > _LONGEST_NAME:
        raise OutputError(
            f"the name of the output {resolved.name[:40]}... is longer than {_LONGEST_NAME} bytes",
            "choose a shorter name",
        )
    for source in sources:
        inside = source.resolve()
        if resolved == inside or inside in resolved.parents or resolved in inside.parents:
            raise OutputError(
                f"the output {output} and the source {source} lie inside one another",
                "choose an output folder elsewhere",
            )
    _check_absent(output, force)
    if os.path.lexists(output) and (output.is_symlink() or not output.is_dir()):
        raise OutputError(f"{output} is not a folder", "choose another output")
    parent = existing_parent(output)
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError(f"{parent} cannot be written to", "choose an output folder elsewhere")


def existing_parent(output: Path) -> Path:
    """The nearest folder above ``output`` that exists: it will lie on the same file system."""
    place = output.resolve().parent
    while not place.exists():
        place = place.parent
    return place


def check_free_space(output: Path, needed_bytes: int) -> None:
    """Raise ``OutputError`` when the file system under ``output`` has too little room."""
    place = existing_parent(output)
    free = shutil.disk_usage(place).free
    if free < needed_bytes:
        raise OutputError(
            f"the output needs {needed_bytes / 1e9:.2f} GB, {place} has {free / 1e9:.2f} GB free",
            "free some space, choose another disk, or use fewer experts or layers",
        )


@contextmanager
def output_errors(output: Path) -> Iterator[None]:
    """Turn failures to write below ``output`` into ``OutputError``."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise OutputError(
                f"no space left while writing {output}; nothing was kept", "free some space or choose another disk"
            ) from error
        if isinstance(error, ChildProcessError):
            hint = "it was killed, perhaps for want of memory: free some, then run it again"
        else:
            hint = "check the disk and the permissions, then run the command again"
        raise OutputError(f"writing {output} failed: {error.strerror or error}; nothing was kept", hint) from error


@contextmanager
def staged(output: Path, force: bool = False) -> Iterator[Path]:
    """A temporary sibling of ``output`` that becomes ``output`` when the block ends well.

    The sibling has a fixed name and is locked: a second run on the same output is refused while
    the first is alive, and clears what a killed one left behind. Everything is flushed to disk
    before the one rename. On any failure, Ctrl-C included, the sibling is removed; signals wait
    while it appears, is renamed, or goes.
    """
    output = output.resolve()
    stage = output.with_name(f".{output.name}.moeify-partial")
    made = _missing_folders(output.parent)
    published: list[Kept] = []
    with keeping(lambda: published[0] if published else None), Interruptions() as interruptions:
        lock = None
        try:
            with output_errors(output):
                lock = _claim(stage, output)
                _clear(stage)
                _restore_replaced(output)
                _check_absent(output, force)
            with interruptions.allowed():
                yield stage
                with output_errors(output):
                    sync_tree(stage)
            with output_errors(output):
                _publish(stage, output, force)
            published.append(Kept(what=f"{output} is complete"))
        except BaseException:
            if lock is not None:
                _remove(stage, lock)
            for folder in made:
                with suppress(OSError):  # something else lies in it by now
                    folder.rmdir()
            raise
        finally:
            if lock is not None:
                os.close(lock)


@contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """A new folder in ``parent`` for as long as the block lasts.

    It is locked, so that the next one in the same place clears it where this process is killed.
    """
    _clear_abandoned(parent)
    lock = None
    with output_errors(parent):
        while lock is None:  # another's clearing may take it before it is locked
            folder = Path(tempfile.mkdtemp(prefix=_SCRATCH, dir=parent))
            with suppress(BlockingIOError):
                lock = _lock(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _clear_abandoned(parent: Path) -> None:
    """Remove scratch folders whose process is gone; those of other users stay."""
    for folder in parent.glob(f"{_SCRATCH}*"):
        with suppress(OSError):
            if folder.lstat().st_uid == os.geteuid() and (lock := _lock(folder)) is not None:
                shutil.rmtree(folder, ignore_errors=True)
                os.close(lock)


def _lock(folder: Path) -> int | None:
    """A lock on ``folder``; None where it is gone, or has become another folder by now.

    Raises ``BlockingIOError`` where another process has it.
    """
    try:
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_same(folder, lock):
            return lock
    except PermissionError as error:  # some network file systems say it so
        os.close(lock)
        raise BlockingIOError(error.errno, error.strerror) from error
    except OSError:
        os.close(lock)
        raise
    os.close(lock)
    return None


def _missing_folders(folder: Path) -> list[Path]:
    """The folders that must be made so that ``folder`` exists, innermost first."""
    return [place for place in (folder, *folder.parents) if not place.exists()]


def _claim(stage: Path, output: Path) -> int:
    """Create and lock the staging folder."""
    while True:
        stage.parent.mkdir(parents=True, exist_ok=True)
        made = False
        try:
            made = _make(stage)
            lock = _lock(stage)
        except FileNotFoundError:
            continue  # the parent went just now
        except BlockingIOError as error:
            raise OutputError(
                f"another moeify run is writing {output}", "wait for it, or choose another output"
            ) from error
        except OSError:
            if made:
                stage.rmdir()
            raise
        if lock is not None:  # else the run before us removed it or renamed it away
            return lock


def _make(stage: Path) -> bool:
    """Whether the folder is new."""
    try:
        stage.mkdir()
    except FileExistsError:
        return False
    return True


def _is_same(stage: Path, lock: int) -> bool:
    """Whether the locked folder is still the one at this path."""
    try:
        return os.path.samestat(os.fstat(lock), os.stat(stage))
    except FileNotFoundError:
        return False


def _clear(stage: Path) -> None:
    """Empty the folder of what an earlier run left."""
    for entry in stage.iterdir():
        shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()


def _remove(stage: Path, lock: int) -> None:
    if _is_same(stage, lock):  # else it is published, and by now the next run's may stand there
        shutil.rmtree(stage, ignore_errors=True)


def _check_absent(output: Path, force: bool) -> None:
    if os.path.lexists(output) and not force:
        raise OutputError(f"the output {output} exists already", "choose another folder, or pass --force")


def _replaced(output: Path) -> Path:
    return output.with_name(f".{output.name}.moeify-replaced")


def _restore_replaced(output: Path) -> None:
    """Finish what a run killed between the two renames of ``_publish`` left undone."""
    old = _replaced(output)
    if old.exists() and not output.exists():
        os.rename(old, output)
    elif old.exists():
        shutil.rmtree(old)


def _publish(stage: Path, output: Path, force: bool) -> None:
    if os.path.lexists(output):
        if not force:
            raise OutputError(
                f"the output {output} appeared while moeify was writing; it was left alone",
                "choose another folder, or pass --force",
            )
        old = _replaced(output)
        os.rename(output, old)
        try:
            os.rename(stage, output)
        except OSError:
            os.rename(old, output)
            raise
        shutil.rmtree(old, ignore_errors=True)
    else:
        os.rename(stage, output)
    with suppress(OSError):  # the folder is complete and has its name: no reason to call it failed
        _sync(output.parent)


def sync_tree(folder: Path) -> None:
    """Flush every file and folder below ``folder`` to disk."""
    for place, _, files in os.walk(folder):
        for name in files:
            _sync(Path(place, name))
        _sync(Path(place))


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
