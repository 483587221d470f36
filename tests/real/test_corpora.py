"""The corpora are clean, of the language they claim, and of the same passages each time."""

from collections import Counter

import pytest

from . import corpora

# Words that are frequent in one domain and rare in the others.
MARKS = {
    "english": (" unto ", " the LORD ", " And "),
    "python": ("self", "def ", "return"),
    "german": (" der ", " und ", " ist "),
    "logs": ("192.", "failed", ": "),
    "jargon": (" hacker", " program", " computer"),
}


@pytest.mark.real
@pytest.mark.parametrize("name", MARKS)
def test_passages_are_of_their_domain(name: str) -> None:
    rows = corpora.domains([name], max_documents=100)
    assert len(rows) == 100
    assert {row["domain"] for row in rows} == {name}
    text = " ".join(row["text"] for row in rows)
    assert all(mark in text for mark in MARKS[name])
    assert not {"\x00", "\ufffd", "\xad"} & set(text)
    assert max(len(row["text"]) for row in rows) <= 800


@pytest.mark.real
def test_domains_are_balanced_and_repeatable() -> None:
    rows = corpora.domains(max_documents=50)
    assert set(Counter(row["domain"] for row in rows).values()) == {50}
    assert rows == corpora.domains(max_documents=50)
    assert rows != corpora.domains(max_documents=50, seed=1)
