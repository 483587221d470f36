"""Experts in slices are taken out slice by slice."""

from pathlib import Path

import pytest

import moeify
from moeify.errors import ConfigError
from moeify.upcycling.verify import verify
from tests.tiny import save_tiny, tolerance


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A dense checkpoint, and that with 4 experts in each of 2 slices."""
    folder = tmp_path_factory.mktemp("slices")
    dense = save_tiny(folder / "dense", "distilbert")
    moeify.upcycle(dense, folder / "moe", slices=2, num_experts=4, top_k=1, noise=0)
    return dense, folder / "moe"


def test_as_many_stay_in_each_slice(made: tuple[Path, Path], tmp_path: Path) -> None:
    dense, moe = made
    for keep in (2, 4, 6):
        report = moeify.prune(moe, tmp_path / str(keep), keep=keep, by="random")
        for kept in report.kept.values():
            assert sum(expert < 4 for expert in kept) == sum(expert >= 4 for expert in kept) == keep // 2
        assert verify(dense, tmp_path / str(keep)).relative_diff <= tolerance("distilbert")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": 3}, "must be a multiple of 2"),
        ({"keep": 1}, "each token visits 2 experts"),
        ({"drop": "all:0,1", "by": None}, "in its 2 slices, which must stay equally large"),
        ({"drop": "all:0,1,2,3,4,5", "by": None, "dense": True}, "in its 2 slices"),
    ],
)
def test_what_would_leave_slices_uneven_is_refused(
    options: dict[str, object], message: str, made: tuple[Path, Path], tmp_path: Path
) -> None:
    options = {key: value for key, value in {"by": "random", **options}.items() if value is not None}
    with pytest.raises(ConfigError, match=message):
        moeify.prune(made[1], tmp_path / "less", **options)
    assert not (tmp_path / "less").exists()


def test_other_commands_say_what_they_cannot_do(made: tuple[Path, Path], tmp_path: Path) -> None:
    dense, moe = made
    with pytest.raises(ConfigError, match="there is no expert 4: the experts of each slice are 0 to 3"):
        moeify.extract(moe, tmp_path / "one", expert=4)
    with pytest.raises(ConfigError, match="multiple of the 2 slices"):
        moeify.attach(moe, tmp_path / "fresh", top_k=3)
    moeify.attach(moe, tmp_path / "fresh", top_k=4)
    assert verify(dense, tmp_path / "fresh").relative_diff <= tolerance("distilbert")
