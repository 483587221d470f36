"""Where the tokens of some texts go, one by one: what is shown as coloured text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moeify.routing.collection import RoutedTokens
from moeify.routing.data import Blocks
from moeify.routing.pieces import Pieces, pieces

MOST_TOKENS = 512
"""Tokens that are shown at most, of all texts together."""
_LEAST = 16  # of a domain's, where there are many domains
_CHARACTERS = 16 * MOST_TOKENS


class FirstTexts:
    """The first texts of every domain, as many as may be shown; told each text that is read."""

    def __init__(self) -> None:
        self._texts: dict[str | None, list[str]] = {}

    def __call__(self, text: str, domain: str | None) -> None:
        held = self._texts.setdefault(domain, [])
        if sum(map(len, held)) < _CHARACTERS:
            held.append(text[: _CHARACTERS + 1])

    def passages(self, tokenizer: Any, seq_len: int) -> list[Passage]:
        """Their beginnings, of at most ``seq_len`` tokens each, as many of every domain."""
        found: list[Passage] = []
        domains = sorted(self._texts, key=str)[: MOST_TOKENS // _LEAST]
        for domain in domains:
            room = MOST_TOKENS // len(domains)
            for text in self._texts[domain]:
                if room < min(_LEAST, seq_len):
                    break
                if beginning := pieces(tokenizer, text, min(room, seq_len)):
                    found.append(Passage(domain=domain, pieces=beginning))
                    room -= len(beginning)
        return found


@dataclass(frozen=True, kw_only=True)
class Passage:
    """The beginning of a text, and the text's domain."""

    domain: str | None
    pieces: Pieces


class TokenRoutes:
    """The experts and weights of every token of ``passages``, T in all: an observer for ``collect``.

    The passages stand in front of whatever else runs through the model. ``labels`` say what each expert knows, where
    that is recorded.
    """

    def __init__(self, passages: Sequence[Passage], labels: Sequence[str] | None = None) -> None:
        self.passages, self.labels = tuple(passages), None if labels is None else tuple(labels)
        self.slices = self.num_experts = 1
        self._experts: dict[int, list[NDArray[np.int64]]] = {}
        self._weights: dict[int, list[NDArray[np.float32]]] = {}

    @property
    def count(self) -> int:
        """Tokens in all, T."""
        return sum(len(passage.pieces) for passage in self.passages)

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers seen."""
        return tuple(sorted(self._experts))

    def in_front_of(self, blocks: Blocks | None, padding: int) -> Blocks:
        """The passages as blocks, a row for each, with those of ``blocks`` behind them."""
        lengths = [len(passage.pieces) for passage in self.passages]
        rows = np.full((len(lengths), blocks.seq_len if blocks else max(lengths)), padding, np.int32)
        for row, passage in zip(rows, self.passages, strict=True):
            row[: len(passage.pieces)] = passage.pieces.token_ids
        if blocks is None:
            return Blocks(
                input_ids=rows, lengths=np.array(lengths), domains=None, domain_names=(), documents=len(rows)
            )
        none = np.zeros(len(rows), np.int64)  # nobody counts these by domain
        return replace(
            blocks,
            input_ids=np.concatenate([rows, blocks.input_ids]),
            lengths=np.concatenate([lengths, blocks.lengths]),
            domains=None if blocks.domains is None else np.concatenate([none, blocks.domains]),
            labelled=None,
        )

    def __call__(self, tokens: RoutedTokens) -> RoutedTokens | None:
        """Keep what the passages' tokens do; returns the tokens behind them."""
        experts, weights = (held.setdefault(tokens.layer, []) for held in (self._experts, self._weights))
        missing = self.count - sum(map(len, experts))
        own = tokens.take(slice(missing))
        if missing:
            self.slices, self.num_experts = tokens.slices, tokens.logits.shape[1]
            experts.append(own.experts.numpy())
            weights.append(own.weights.numpy())
        return tokens.take(slice(missing, None)) if len(tokens.experts) > missing else None

    def experts(self, layer: int) -> NDArray[np.int64]:
        """The experts of each token in one layer [T, K], slice by slice, most weight first."""
        return np.concatenate(self._experts[layer])

    def weights(self, layer: int) -> NDArray[np.float32]:
        """What multiplies their outputs [T, K]."""
        return np.concatenate(self._weights[layer])

    def first(self, layer: int, part: int = 0) -> NDArray[np.int64]:
        """The expert of each token [T] with most weight, in slice ``part``."""
        experts = self.experts(layer)
        return experts[:, part * (experts.shape[1] // self.slices)]

    def name(self, expert: int) -> str:
        """An expert's number and what it knows."""
        return f"{expert} {self.labels[expert]}" if self.labels and expert < len(self.labels) else str(expert)

    def to_dict(self) -> dict[str, Any]:
        """For the JSON document: ``text`` [T], ``experts``, E for null ones, and ``weights`` [layers, T, K]."""
        weights = (self.weights(layer).tolist() for layer in self.layers)
        stops = np.cumsum([len(passage.pieces) for passage in self.passages]).tolist()
        return {
            "text": [text for passage in self.passages for text in passage.pieces.texts],
            "token_ids": [token for passage in self.passages for token in passage.pieces.token_ids],
            "passages": [
                {"domain": passage.domain, "stop": stop, "cut": passage.pieces.cut}
                for passage, stop in zip(self.passages, stops, strict=True)
            ],
            "labels": None if self.labels is None else list(self.labels),
            "slices": self.slices,
            "layers": list(self.layers),
            "experts": [self.experts(layer).tolist() for layer in self.layers],
            "weights": [[[float(f"{w:.4g}") for w in token] for token in layer] for layer in weights],
        }
