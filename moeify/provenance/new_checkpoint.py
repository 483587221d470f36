"""A checkpoint that comes to be: checked before the long work, then there whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from moeify.checkpoint.carry import carried, carry_files
from moeify.checkpoint.checksums import SMALL_BYTES, sha256
from moeify.checkpoint.foreign_code import names_code, without_code
from moeify.checkpoint.header import StoredTensor
from moeify.checkpoint.jobs import Tally
from moeify.checkpoint.planned_files import PlannedFiles, check_written, write_files
from moeify.checkpoint.reader import Checkpoint
from moeify.checkpoint.source import Source
from moeify.checkpoint.staging import check_free_space, check_output, output_errors, staged
from moeify.errors import CheckpointError
from moeify.families.structure import check_structure
from moeify.families.values import Config
from moeify.progress import stage
from moeify.provenance.card import CARD_FILE, write_card
from moeify.provenance.companions import name_tokenizer_class, write_config
from moeify.provenance.config import OutputOptions
from moeify.provenance.record import RECORD_FILE, FileEntry, Record, Step, recorded_sums

_UNLISTED = (RECORD_FILE, CARD_FILE)  # the list itself, and a page that is there to be edited


class NewCheckpoint:
    """The output of a command: ``check`` the plan, then ``write`` and ``finish`` it in ``opened``.

    Making one raises ``OutputError`` where no output may stand at ``target`` (unless none will be
    written) and ``CheckpointError`` for files that cannot go along. ``leave`` are files of the
    source that have no place in it.
    """

    def __init__(
        self,
        source: Source,
        target: Path,
        options: OutputOptions,
        *,
        leave: Collection[str] = (),
        written: bool = True,
    ) -> None:
        if written:
            check_output(target, source.folder, force=options.force)
        self.source, self.target, self.options, self._leave = source, target, options, leave
        self.along = carried(source.folder, leave)
        self._record, self._sums = Record.read(source), recorded_sums(source.folder)
        self._files = PlannedFiles(shards=())

    def check(self, files: PlannedFiles, config: Config, *, beside: Iterable[Path] = (), more_bytes: int = 0) -> None:
        """Everything that can be told of an output before it is made.

        The class of ``config`` must find what it loads in ``files``, and the disk have room for
        them, for what goes along and for ``more_bytes``. ``beside`` are further sources.
        """
        check_output(self.target, *beside, force=self.options.force)
        check_structure({t.name: t for t in files.tensors()}, config, "the output")
        check_free_space(self.target, files.nbytes + self.along.nbytes + more_bytes)

    @contextmanager
    def opened(self) -> Iterator[Path]:
        """The folder in which the output is made; it appears when the block ends well."""
        with staged(self.target, self.options.force) as stage, output_errors(self.target):
            self.stage = stage
            yield stage

    def write(self, files: PlannedFiles, check: Iterable[StoredTensor] = ()) -> Tally:
        """Write weights and index, and copy what goes along; see ``write_shards``."""
        self._files = files
        tally = write_files(self.stage, files, check)
        carry_files(self.source.folder, self.stage, self._leave)
        return tally

    def finish(self, config: Config, step: Step) -> Record:
        """Write what stands beside the weights, and list all files in moeify.json.

        Headers are read from the disk and held against the plan. Raises ``CheckpointError`` and
        ``OutputError``.
        """
        write_config(self.stage, config)
        name_tokenizer_class(self.stage, config)
        opened = Checkpoint.open(self.stage)
        check_written(self._files, opened.tensors)
        record = self._record.with_step(step)
        if named := names_code(self.source.folder):
            record = record.with_results(custom_code=list(named))
        write_card(self.stage, without_code(config), record, self.source.folder, opened)
        record.write(self.stage, self._entries())
        return record

    def _entries(self) -> dict[str, FileEntry]:
        names = [name for name in _names(self.stage) if name not in _UNLISTED]
        known = {
            file: self._sums[path]
            for path, file in self._files.linked
            if path in self._sums and os.path.samefile(path, self.stage / file)
        }
        found: dict[str, FileEntry] = {}
        with (
            ThreadPoolExecutor(min(2, os.cpu_count() or 1)) as pool,
            stage("listing files", len(names), "files") as listing,
        ):
            for name, entry in zip(names, pool.map(lambda n: self._entry(n, known.get(n)), names), strict=True):
                found[name] = entry
                listing.advance()
        return found

    def _entry(self, name: str, known: str | None) -> FileEntry:
        """Size and sum of a file; ``known`` is what the source recorded of one that is linked.

        Without ``checksum`` only what costs nothing is summed.
        """
        path = self.stage / name
        nbytes = path.stat().st_size
        if not self.options.checksum and (known is not None or nbytes > SMALL_BYTES):
            return FileEntry(nbytes=nbytes, sha256=known)
        found = sha256(path, cached=nbytes <= SMALL_BYTES)
        if known not in (None, found):
            raise CheckpointError(
                f"{name} of the source is not what its moeify.json says: its SHA-256 is"
                f" {found[:12]}..., not {str(known)[:12]}...",
                "moeify inspect SOURCE --verify checks every file; download or make it again",
                path=path,
            )
        return FileEntry(nbytes=nbytes, sha256=found)


def _names(folder: Path) -> list[str]:
    """Every file below ``folder``, relative to it."""
    return sorted(
        PurePosixPath(Path(place, name).relative_to(folder)).as_posix()
        for place, _, files in os.walk(folder)
        for name in files
    )
