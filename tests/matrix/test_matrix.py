"""Every command on every model type in every form of file: it works, or says why not."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from moeify.errors import MoeifyError
from moeify.families import registry
from moeify.families.moe_layout import MoeLayout
from moeify.families.values import Config, Dims
from tests.matrix.commands import COMMANDS, Command
from tests.matrix.refusals import REASONS, refusal
from tests.matrix.sources import FORMS, LOADABLE, Source, cases, make

pytestmark = pytest.mark.matrix


def _rows() -> Iterator[Any]:
    """Each source is made by one process, which runs every command on it."""
    for case in cases():
        name = "-".join(case)
        yield pytest.param(case, id=name, marks=pytest.mark.xdist_group(name))


@pytest.fixture(scope="module", params=_rows())
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Source:
    model_type, form = request.param
    return make(model_type, form, tmp_path_factory.mktemp("source") / "checkpoint")


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_cell(command: Command, source: Source, tmp_path: Path) -> None:
    before = source.hashes
    reason = refusal(command.name, source.model_type, source.form.name)
    if reason is None:
        command.run(source, tmp_path)
    else:
        with pytest.raises(MoeifyError) as caught:
            command.run(source, tmp_path)
        said = f"{caught.value.message} {caught.value.hint or ''}"
        assert re.search(reason.sentence, said), said
        assert list(tmp_path.iterdir()) == []
    del source.hashes
    assert source.hashes == before


def test_every_form_and_every_reason_is_met() -> None:
    rows = list(cases())
    assert {form for _, form in rows} == {form.name for form in FORMS}
    assert {model_type for model_type, _ in rows} == {*registry.DENSE_LAYOUTS, *LOADABLE}
    met = {refusal(command.name, *row) for row in rows for command in COMMANDS}
    assert met - {None} == set(REASONS)


def _without_vocabulary(layout: MoeLayout) -> MoeLayout:
    def dims(config: Config) -> Dims:
        return {size: value for size, value in layout.dims(config).items() if size != "V"}

    return replace(layout, dims=dims)


def _gates_exchanged(layout: MoeLayout) -> MoeLayout:
    """Experts whose gate is called the down-projection, and the other way round."""
    gate, up, down = layout.experts
    return replace(layout, experts=(replace(gate, name=down.name), up, replace(down, name=gate.name)))


FAULTS = {
    "no vocabulary": _without_vocabulary,
    "gate and down-projection exchanged": _gates_exchanged,
    "a router of another name": lambda layout: replace(layout, router="mlp.router.weight"),
    "a tensor too few": lambda layout: replace(layout, rest=replace(layout.rest, per_layer=())),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_planted_in_one_familys_data_fails_a_cell(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the cells would show nothing."""
    source = make("mixtral", "float32", tmp_path / "checkpoint")
    faulty = FAULTS[fault](registry.MOE_LAYOUTS["mixtral"])
    monkeypatch.setitem(registry.MOE_LAYOUTS, "mixtral", faulty)
    failed = []
    for number, command in enumerate(COMMANDS):
        if refusal(command.name, "mixtral", "float32") is None:
            work = tmp_path / str(number)
            work.mkdir()
            try:
                command.run(source, work)
            except Exception:
                failed.append(command.name)
    assert failed
