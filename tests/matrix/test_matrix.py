"""Every command on every model type in every form of file: it works, or says why not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from moeify.errors import MoeifyError
from tests.matrix.commands import COMMANDS, Command
from tests.matrix.refusals import refusal
from tests.matrix.sources import Source, cases, make

SOURCES = list(cases())


@pytest.fixture(scope="module", params=SOURCES, ids=lambda case: f"{case[0]}-{case[1]}")
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
