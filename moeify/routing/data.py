"""Texts cut into blocks of tokens, with a slice held out."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moeify.checkpoint.reader import Checkpoint
from moeify.errors import CheckpointError, ConfigError, DatasetError
from moeify.families.registry import vocabulary_size
from moeify.families.values import Config
from moeify.progress import stage
from moeify.routing.config import DataConfig
from moeify.routing.documents import Document, read_documents
from moeify.routing.loading import load_tokenizer
from moeify.routing.tokens import Tokens

if TYPE_CHECKING:
    from torch import Tensor

DEFAULT_SEQ_LEN = 512
Seen = Callable[[str, str | None], None]
"""Told each text that is read, and its domain."""
_POSITIONS = ("max_position_embeddings", "n_positions")


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """N blocks of S tokens.

    ``input_ids`` is [N, S] int32; of row i the first ``lengths[i]`` tokens count, the others are
    padding. ``domains`` [N] holds each block's place in ``domain_names``, and is None where no
    column names domains. ``notes`` say what of the text was left out.
    """

    input_ids: NDArray[np.int32]
    lengths: NDArray[np.int64]
    domains: NDArray[np.int64] | None
    domain_names: tuple[str, ...]
    documents: int
    notes: tuple[str, ...] = ()
    labelled: NDArray[np.bool_] | None = None
    """Which tokens have labels [N, S]; None where all have."""

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def seq_len(self) -> int:
        """Tokens of a block, padding included, S."""
        return int(self.input_ids.shape[1])

    @property
    def tokens(self) -> int:
        """Tokens that count."""
        return int(self.lengths.sum())

    @property
    def largest_token(self) -> int:
        """The largest of the tokens that count."""
        real = np.arange(self.seq_len) < self.lengths[:, None]
        return int(self.input_ids.max(where=real, initial=0))

    @property
    def fingerprint(self) -> str:
        """SHA-256 of tokens, lengths, domains and labels."""
        digest = hashlib.sha256(self.input_ids.tobytes() + self.lengths.tobytes())
        for more in (self.domains, self.labelled):
            digest.update(b"" if more is None else more.tobytes())
        return digest.hexdigest()

    def take(self, rows: Any) -> Blocks:
        """The blocks at ``rows``, an index or a slice along axis 0."""
        return replace(
            self,
            input_ids=self.input_ids[rows],
            lengths=self.lengths[rows],
            domains=None if self.domains is None else self.domains[rows],
            labelled=None if self.labelled is None else self.labelled[rows],
        )

    def split(self, fraction: float) -> tuple[Blocks, Blocks]:
        """These blocks in two parts, the second with about ``fraction`` of every domain.

        Each domain keeps at least one block on either side; raises ``DatasetError`` where a
        domain has only one.
        """
        held_out = np.zeros(len(self), bool)
        groups = np.zeros(len(self), np.int64) if self.domains is None else self.domains
        for group in np.unique(groups):
            rows = np.flatnonzero(groups == group)
            if len(rows) < 2:
                of = f" of domain {self.domain_names[group]!r}" if self.domain_names else ""
                raise DatasetError(
                    f"{self.tokens} tokens make one block{of}, and a held-out slice needs another",
                    f"name a longer text, or pass a --seq-len smaller than {self.seq_len}",
                )
            count = min(max(1, round(fraction * len(rows))), len(rows) - 1)
            held_out[rows[np.linspace(0, len(rows) - 1, count, dtype=int)]] = True
        return self.take(~held_out), self.take(held_out)

    def batches(self, batch_size: int) -> Iterator[tuple[dict[str, Tensor], Blocks]]:
        """Batches of at most ``batch_size`` blocks: the model's inputs, and the blocks.

        The inputs are ``input_ids`` and ``attention_mask``, int64 [B, S].
        """
        for start in range(0, len(self), batch_size):
            part = self.take(slice(start, start + batch_size))
            yield part.inputs(), part

    def inputs(self) -> dict[str, Tensor]:
        """``input_ids`` and ``attention_mask`` of all blocks, int64 [N, S]."""
        import torch

        mask = np.arange(self.seq_len) < self.lengths[:, None]
        return {
            "input_ids": torch.from_numpy(self.input_ids.astype(np.int64)),
            "attention_mask": torch.from_numpy(mask.astype(np.int64)),
        }


def block_length(config: Config, seq_len: int | None) -> int:
    """Tokens of a block: ``seq_len``, or 512, or the model's limit where that is less.

    Raises ``ConfigError`` when ``seq_len`` is more than the model allows.
    """
    limits = [config[key] for key in _POSITIONS if isinstance(config.get(key), int)]
    limit = min(limits, default=None)
    if seq_len is None:
        return DEFAULT_SEQ_LEN if limit is None else min(DEFAULT_SEQ_LEN, limit)
    if limit is not None and seq_len > limit:
        raise ConfigError(
            f"a block of {seq_len} tokens is longer than the model's {limit} positions",
            f"pass --seq-len {min(DEFAULT_SEQ_LEN, limit)}",
        )
    return seq_len


def check_vocabulary(tokenizer: Any, largest: int, known: int) -> None:
    """Raise ``DatasetError`` where ``largest``, of a text's tokens, is none of the ``known`` ones.

    A tokenizer may have more tokens than the model, as long as the text does without them.
    """
    if largest >= known:
        raise DatasetError(
            f"a tokenizer of {len(tokenizer)} tokens makes token {largest}, the model knows {known} tokens",
            "copy the tokenizer that belongs to the model into its folder, or resize the model's"
            f" embeddings to {max(len(tokenizer), largest + 1)} rows: resize_token_embeddings",
        )


def tokenizer_for(folder: Path) -> Any:
    """The tokenizer in ``folder``; raises ``DatasetError`` where there is none."""
    try:
        return load_tokenizer(folder)
    except CheckpointError as error:
        raise DatasetError(
            f"{folder} has no tokenizer that transformers can load",
            "save the tokenizer of the dense model into the folder: tokenizer.save_pretrained",
        ) from error


def blocks_for(
    checkpoint: Checkpoint, data: DataConfig, max_tokens: int, seen: Seen | None = None
) -> tuple[Blocks, Any]:
    """The texts of ``data`` as a model reads them, and its tokenizer; ``seen`` is told the texts.

    Raises ``ConfigError`` and ``DatasetError``.
    """
    tokenizer = tokenizer_for(checkpoint.folder)
    known = vocabulary_size(checkpoint.config)
    seq_len = block_length(checkpoint.config, data.seq_len)
    return read_blocks(data, tokenizer, seq_len, max_tokens, known, seen), tokenizer


def read_blocks(
    data: DataConfig,
    tokenizer: Any,
    seq_len: int,
    max_tokens: int | None = None,
    known: int | None = None,
    seen: Seen | None = None,
) -> Blocks:
    """Tokenise the texts of ``data`` and pack them into blocks of ``seq_len`` tokens.

    Reading stops at ``max_tokens``; padding is one of the ``known`` tokens. Raises ``DatasetError``
    for data that cannot be read, other tokens, and fewer than one block of them.
    """
    texts = _Texts(data, tokenizer, seen)
    documents = Tokens(tokenizer, seq_len, max_tokens, data.seed).of(texts)
    blocks = pack(documents, seq_len, padding_token(tokenizer, known), max_tokens)
    if not texts.read:
        raise texts.nothing()
    least = seq_len if max_tokens is None else min(seq_len, max_tokens)
    if not len(blocks) or blocks.lengths.max() < least:
        raise DatasetError(
            f"{data.dataset} holds {blocks.tokens} tokens, fewer than one block of {least}",
            "name a longer text, or pass a smaller --seq-len",
        )
    if blocks.labelled is not None and not blocks.labelled.any():
        raise DatasetError(
            f"no assistant says anything in {data.dataset}",
            "leave --assistant-only out, or name conversations whose roles are user and assistant",
        )
    if known is not None:
        check_vocabulary(tokenizer, blocks.largest_token, known)
    return replace(blocks, documents=texts.read, notes=texts.notes())


def pack(
    documents: Iterable[tuple[Iterable[int], str | None]], seq_len: int, padding: int, max_tokens: int | None = None
) -> Blocks:
    """Join documents of one domain and cut them into blocks; the last of a domain is padded.

    No more than ``max_tokens`` are taken from ``documents``.
    """
    rest: dict[str | None, list[int]] = {}
    rows: list[tuple[NDArray[np.int32], int, str | None]] = []
    count, room = 0, sys.maxsize if max_tokens is None else max_tokens

    def cut(tokens: list[int], domain: str | None) -> None:
        row = np.full(seq_len, padding, np.int32)
        row[: len(tokens)] = tokens
        rows.append((row, len(tokens), domain))

    with stage("reading text", max_tokens, "tokens") as reading:
        for tokens, domain in documents:
            count += 1
            stream, queue = iter(tokens), rest.setdefault(domain, [])
            while part := list(islice(stream, min(seq_len - len(queue), room))):
                queue += part
                room -= len(part)
                reading.advance(len(part))
                if len(queue) == seq_len:
                    cut(queue, domain)
                    queue.clear()
            if room <= 0:
                break
    for domain, queue in rest.items():
        if queue:
            cut(queue, domain)
    found = np.stack([row for row, _, _ in rows]) if rows else np.empty((0, seq_len), np.int32)
    lengths = np.array([length for _, length, _ in rows], np.int64)
    names = tuple(sorted(domain for domain in rest if domain is not None))
    place = {name: number for number, name in enumerate(names)}
    return Blocks(
        input_ids=np.maximum(found, ~found),  # what has no label is marked so
        labelled=(found >= 0) & (np.arange(seq_len) < lengths[:, None]) if (found < 0).any() else None,
        lengths=lengths,
        domains=np.array([place[d] for _, _, d in rows if d is not None]) if names else None,
        domain_names=names,
        documents=count,
    )


class _Texts:
    """The texts of ``data``, without those that lack the domain which others have."""

    def __init__(self, data: DataConfig, tokenizer: Any, seen: Seen | None = None) -> None:
        self.data, self.tokenizer, self.seen, self.read, self.left_out = data, tokenizer, seen, 0, 0

    def __iter__(self) -> Iterator[Document]:
        for document in read_documents(self.data, self.tokenizer):
            if document.domain is None and self.data.domain_column is not None:
                self.left_out += 1
                continue
            self.read += 1
            if self.seen is not None:
                self.seen(document.text, document.domain)
            yield document

    def nothing(self) -> DatasetError:
        """What to say where no text is left."""
        if self.left_out:
            return DatasetError(
                f"column {self.data.domain_column!r} of {self.data.dataset} is empty in all {self.left_out} texts",
                "name the column that holds domains, or leave --domain-column out",
            )
        return DatasetError(f"{self.data.dataset} holds no text", "name a dataset that holds text")

    def notes(self) -> tuple[str, ...]:
        """What reports say about texts without a domain."""
        if not self.left_out:
            return ()
        texts = "1 text was" if self.left_out == 1 else f"{self.left_out} texts were"
        return (f"{texts} left out: column {self.data.domain_column!r} is empty there",)


def padding_token(tokenizer: Any, known: int | None) -> int:
    """The token that fills blocks up, one of the ``known`` ones."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None and (known is None or token < known):
            return int(token)
    return 0
