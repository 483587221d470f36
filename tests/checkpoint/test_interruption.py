"""Signals wait where they would do harm, and are not forgotten."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from moeify.checkpoint.interruption import Interruptions
from moeify.checkpoint.replacing import remove_partial, replacing
from moeify.checkpoint.staging import staged


@pytest.fixture(autouse=True)
def default_handler() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_signal_waits_for_the_end_of_the_block() -> None:
    done = []
    with pytest.raises(KeyboardInterrupt), Interruptions():
        signal.raise_signal(signal.SIGINT)
        done.append("went on")
    assert done == ["went on"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_allowed_part_is_interrupted_at_once_and_by_what_waited() -> None:
    done = []
    with pytest.raises(KeyboardInterrupt), Interruptions() as held:
        signal.raise_signal(signal.SIGINT)
        with held.allowed():
            done.append("not reached")
    assert done == []
    with pytest.raises(KeyboardInterrupt), Interruptions() as held, held.allowed():
        signal.raise_signal(signal.SIGINT)
        done.append("not reached")
    assert done == []


def test_in_another_thread_nothing_is_held() -> None:
    errors: list[BaseException] = []

    def work() -> None:
        try:
            with Interruptions() as held, held.allowed():
                assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert errors == []


def test_a_signal_while_a_folder_is_published_leaves_it_complete(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), Interruptions(), staged(tmp_path / "out") as stage:
        (stage / "file").write_text("x")
        signal.raise_signal(signal.SIGINT)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    with replacing(path) as partial:
        partial.write_text("first")
        assert not path.exists()
        assert partial.suffix == ".json"
    for failure in (KeyboardInterrupt, OSError):
        with pytest.raises(failure), replacing(path) as partial:
            partial.write_text("sec")
            raise failure
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_run_left_beside_a_file_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".scores.moeify-partial.json").write_text("half")
    remove_partial(tmp_path / "scores.json")
    remove_partial(tmp_path / "scores.json")
    assert list(tmp_path.iterdir()) == []
