"""A Python process that keeps one object and calls functions on it for us."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import IO, Any, Concatenate, Generic, ParamSpec, TypeVar, cast

P = ParamSpec("P")
T = TypeVar("T")
State = TypeVar("State")

# With -P nothing is imported from the working folder; the search path is ours from then on.
_START = (
    "import pickle, sys; sys.path[:] = pickle.load(sys.stdin.buffer);"
    " from moeify.checkpoint.worker_process import serve; serve()"
)


class WorkerProcess(Generic[State]):
    """A fresh interpreter that holds what ``make(*arguments)`` returns there.

    Functions and arguments travel through pipes that nobody else can write to. The process is in
    a group of its own, so that Ctrl-C reaches us alone, and ends when we do. It inherits the open
    files ``handles``.
    """

    def __init__(self, make: Callable[P, State], handles: Iterable[int], *args: P.args, **kwargs: P.kwargs) -> None:
        self._process = subprocess.Popen(  # noqa: S603 (our own interpreter)
            [sys.executable, "-P", "-c", _START],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=tuple(handles),
            process_group=0,
        )
        self._tasks = cast(IO[bytes], self._process.stdin)
        self._results = cast(IO[bytes], self._process.stdout)
        self._send(sys.path)
        self._send((make, args, kwargs))

    def call(self, function: Callable[Concatenate[State, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """``function(state, *args)`` in the process; raises what it raises.

        Raises ``ChildProcessError`` when the process is gone.
        """
        try:
            self._send((function, args, kwargs))
            failed, result = pickle.load(self._results)  # noqa: S301 (from our own process)
        except (EOFError, BrokenPipeError, pickle.UnpicklingError) as error:
            raise ChildProcessError(f"a worker process ended with status {self._process.wait()}") from error
        if failed:
            raise result
        return cast(T, result)

    def close(self) -> None:
        """End the process; nothing may be under way in it."""
        self._process.kill()
        self._process.wait()
        self._results.close()
        with suppress(BrokenPipeError):  # what it did not read before it died
            self._tasks.close()

    def _send(self, message: object) -> None:
        pickle.dump(message, self._tasks)
        self._tasks.flush()


def serve() -> None:
    """Do what comes in on standard input until it ends: the other side of ``WorkerProcess``."""
    tasks, results = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what anything prints must not mix with the results
    try:
        make, args, kwargs = pickle.load(tasks)  # noqa: S301 (from our own process)
        state = make(*args, **kwargs)
        while True:
            function, args, kwargs = pickle.load(tasks)  # noqa: S301
            _reply(results, _outcome(function, state, args, kwargs))
    except (EOFError, BrokenPipeError):
        os._exit(0)  # nobody is left to tell


def _outcome(
    function: Callable[..., Any], state: object, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[bool, object]:
    try:
        return False, function(state, *args, **kwargs)
    except Exception as error:
        return True, error


def _reply(results: IO[bytes], outcome: tuple[bool, object]) -> None:
    pickle.dump(outcome, results)
    results.flush()
