"""The steps of a moeify.json, done again."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from moeify.errors import CheckpointError, ConfigError
from moeify.options import as_fields
from moeify.provenance.config import WITHOUT_TRACE

_SOURCES = ("experts_from", "experts")
_FILES = ("prompts", "scores")
_TEXTS = ("dataset", "reference")  # which may lie on the Hub
_WITHOUT_EFFECT = ("revision", "plot", "resume", *WITHOUT_TRACE)
"""The commit is recorded; the others write nothing of the output, and no record may have them write elsewhere."""


@dataclass(frozen=True, kw_only=True)
class ReplayConfig:
    """Where what was read lies now, and how the output is written.

    Raises ``ConfigError`` for values that cannot work.
    """

    sources: tuple[str, ...] = ()
    """NAME=PATH for each recorded checkpoint or text that is neither here nor on the Hub."""
    force: bool = False
    """Replace an output that exists."""
    checksum: bool = False
    """Record the SHA-256 of every file, however large, which moeify inspect --verify reads."""

    def __post_init__(self) -> None:
        for entry in self.sources:
            name, sign, path = entry.partition("=")
            if not (name and sign and path):
                raise ConfigError(
                    f"--sources {entry!r} is not NAME=PATH", "write it as --sources my-dense=/data/my-dense"
                )

    @property
    def places(self) -> dict[str, str]:
        """The path of each name."""
        return {name: path for name, _, path in (entry.partition("=") for entry in self.sources)}


@dataclass(frozen=True, kw_only=True)
class ReplayReport:
    """What came of it: ``same`` files have the recorded SHA-256, ``different`` ones another, or another size.

    Of ``unsummed`` files, which have the recorded size, no checksum was recorded. ``trained`` says
    that a step trained weights, after which bytes may differ from machine to machine.
    """

    source: str
    output: str
    steps: tuple[str, ...]
    trained: bool
    same: tuple[str, ...]
    different: tuple[str, ...]
    unsummed: tuple[str, ...]
    warnings: tuple[str, ...]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """The JSON document of ``moeify replay --json``."""
        return {"schema": "moeify.replay/1", **asdict(self)}


@dataclass(frozen=True, kw_only=True)
class _Ready:
    """A step with its options read, and what it reads found."""

    command: str
    run: Callable[..., Any]
    options: dict[str, Any]


def replay(record: str | Path, output: str | Path, config: ReplayConfig | None = None, **options: Any) -> ReplayReport:
    """Repeat the steps that ``record``, a moeify.json or the folder with one, lists, into ``output``.

    The same versions give the same bytes where nothing was trained; the report holds files against
    the recorded sizes and checksums. What is in between lies beside ``output`` while it is needed.
    Raises ``ConfigError`` before anything is written where a source is missing.
    """
    from moeify.checkpoint.source import Source
    from moeify.checkpoint.staging import check_output, existing_parent, scratch_folder
    from moeify.provenance.record import RECORD_FILE, Record, recorded_files

    started = time.perf_counter()
    config = ReplayConfig(**options) if config is None else config
    folder = Path(record).expanduser()
    folder = folder.parent if folder.name == RECORD_FILE else folder
    if not (folder / RECORD_FILE).is_file():
        raise CheckpointError(
            f"{folder} holds no {RECORD_FILE}", "name one that moeify wrote, or its folder", path=folder
        )
    written = Record.read(Source(folder=folder, name=folder.resolve().name))
    if not written.steps:
        raise CheckpointError(f"{folder / RECORD_FILE} lists no steps", "name one that moeify wrote", path=folder)
    find = _Finder(folder.resolve(), config.places)
    source = find.checkpoint(written.source, written.revision, 1, written.steps[0].command)
    steps = [find.ready(step, number) for number, step in enumerate(written.steps, 1)]
    target = Path(output)
    check_output(target, folder, force=config.force)
    with ExitStack() as stack:
        scratch = stack.enter_context(scratch_folder(existing_parent(target))) if len(steps) > 1 else target
        for number, step in enumerate(steps, 1):
            last = number == len(steps)
            place = target if last else scratch / f"{number}"
            more = {"force": config.force, "checksum": config.checksum} if last else {}
            step.run(source, place, **step.options | more)
            if number > 2:
                shutil.rmtree(scratch / f"{number - 2}")
            source = str(place)
    before, after = recorded_files(folder), recorded_files(target)
    compared = _compared(before, after)
    trained = any(step.options.get("steps", 0) for step in steps if step.command == "warmup")
    return ReplayReport(
        source=str(record),
        output=str(target),
        steps=tuple(step.command for step in steps),
        trained=trained,
        **compared,
        warnings=tuple(_warnings(written.steps, _steps_of(target), compared["different"], trained)),
        seconds=time.perf_counter() - started,
    )


def _commands() -> dict[str, tuple[Callable[..., Any], type]]:
    import moeify

    return {
        "upcycle": (moeify.upcycle, moeify.UpcycleConfig),
        "add": (moeify.add_experts, moeify.AddConfig),
        "attach": (moeify.attach, moeify.AttachConfig),
        "warmup": (moeify.warmup, moeify.WarmupConfig),
        "prune": (moeify.prune, moeify.PruneConfig),
        "extract": (moeify.extract, moeify.ExtractConfig),
    }


class _Finder:
    """Finds what steps read: where the user says, in the working folder, or beside the record's folder."""

    def __init__(self, folder: Path, places: Mapping[str, str]) -> None:
        self.near, self.places = (Path(), folder.parent, folder), places

    def ready(self, step: Any, number: int) -> _Ready:
        """A recorded step, ready to run."""
        known = _commands()
        if step.command not in known:
            raise CheckpointError(
                f"step {number} is {step.command!r}, which this version of moeify does not know",
                f"there are {', '.join(known)}",
            )
        run, config = known[step.command]
        given = {key: value for key, value in step.options.items() if key not in _WITHOUT_EFFECT}
        if given.get("drop") is not None:
            given.pop("by", None)
        options = as_fields(config, given, f"step {number}, {step.command},", {})
        if "dataset" in options and str(options.get("scores")) not in self.places:
            options.pop("scores", None)  # a place to keep what the text gives: it is read again
        revisions = _revisions(step)
        for key in _SOURCES:
            if key in options:
                found = (self.checkpoint(n, revisions.get(n), number, step.command) for n in options[key])
                options[key] = tuple(found)
        for key in _FILES:
            if key in options:
                options[key] = Path(self._text(str(options[key]), number, step.command, hub=False))
        for key in _TEXTS:
            if key in options:
                parts = options[key].split(",")
                options[key] = ",".join(self._text(part.strip(), number, step.command, hub=True) for part in parts)
        config(**options)  # refuses what cannot work before anything is done
        return _Ready(command=step.command, run=run, options=options)

    def checkpoint(self, name: str, revision: str | None, number: int, command: str) -> str:
        """The folder, or the Hub id with its commit, of a checkpoint that was read."""
        if (found := self._local(name, hub=revision is not None)) is not None:
            return found
        if revision is not None:
            return f"{name}@{revision}"
        raise _missing(name, number, command)

    def _text(self, name: str, number: int, command: str, *, hub: bool) -> str:
        """A file, or an id on the ``hub``."""
        if (found := self._local(name, hub=False)) is not None:
            return found
        if hub and "/" in name and not name.startswith((".", "/", "~")):
            return name
        raise _missing(name, number, command)

    def _local(self, name: str, *, hub: bool) -> str | None:
        if name in self.places:
            path = Path(self.places[name]).expanduser()
            if not path.exists():
                raise ConfigError(f"--sources {name}={path} leads to nothing", "name a path that exists")
            return str(path)
        if hub:  # a folder that happens to have its name is something else
            return None
        return next((str(place / name) for place in self.near if name and (place / name).exists()), None)


def _revisions(step: Any) -> dict[str, str]:
    """The commits of what a step made experts of, by name."""
    from moeify.provenance.record import expert_sources

    pairs = ((source.get("name"), source.get("revision")) for source in expert_sources(step))
    return {name: revision for name, revision in pairs if isinstance(name, str) and isinstance(revision, str)}


def _missing(name: str, number: int, command: str) -> ConfigError:
    return ConfigError(
        f"step {number}, {command}, read {name!r}, which is not here", f"say where it is: --sources {name}=PATH"
    )


def _compared(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """The recorded files by what became of them."""
    found: dict[str, list[str]] = {"same": [], "different": [], "unsummed": []}
    for name in sorted(before.keys() | after.keys()):
        old, new = before.get(name), after.get(name)
        if old is None or new is None or old.nbytes != new.nbytes:
            found["different"].append(name)
        elif old.sha256 is None or new.sha256 is None:
            found["unsummed"].append(name)
        else:
            found["same" if old.sha256 == new.sha256 else "different"].append(name)
    return {kind: tuple(names) for kind, names in found.items()}


def _steps_of(folder: Path) -> tuple[Any, ...]:
    from moeify.checkpoint.source import Source
    from moeify.provenance.record import Record

    return Record.read(Source(folder=folder, name=folder.name)).steps


def _warnings(before: Any, after: Any, different: tuple[str, ...], trained: bool) -> Iterator[str]:
    for number, (old, new) in enumerate(zip(before, after, strict=False), 1):
        prints = [step.results.get("data_fingerprint") for step in (old, new)]
        if None not in prints and prints[0] != prints[1]:
            text = old.options.get("dataset")
            yield f"step {number}, {old.command}, read other text than before: {text} has changed"
    then, here = before[-1].versions, after[-1].versions
    other = [
        f"{name} {then[name]} then and {here[name]} now" for name in then if here.get(name, then[name]) != then[name]
    ]
    if other:
        yield f"versions differ: {', '.join(map(str, other))}"
    if different:
        why = "something was trained" if trained else "a source has changed, or versions differ"
        yield f"{len(different)} files are not what was recorded, because {why}: {', '.join(different[:5])}"
