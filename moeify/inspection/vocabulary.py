"""Which tokens each expert sees most, and how much of a token's occurrences it sees."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moeify.routing.collection import RoutedTokens
from moeify.routing.data import Blocks

_LISTED = 8
_FEWEST = 8  # occurrences below which a share says nothing


class VocabularyCounts:
    """Assignments by token and expert [U, E] for each layer: an observer for ``collect``.

    U counts the different tokens of the text, not the vocabulary.
    """

    def __init__(self, blocks: Blocks) -> None:
        real = np.arange(blocks.seq_len) < blocks.lengths[:, None]
        self.token_ids, self.occurrences = np.unique(blocks.input_ids[real], return_counts=True)
        self.counts: dict[int, NDArray[np.int32]] = {}

    def __call__(self, tokens: RoutedTokens) -> None:
        if tokens.token_ids is None:
            return
        experts = tokens.logits.shape[1]  # null ones have the number after the last
        if tokens.layer not in self.counts:
            self.counts[tokens.layer] = np.zeros((len(self.token_ids), experts), np.int32)
        rows = np.searchsorted(self.token_ids, tokens.token_ids.numpy())
        flat = (rows[:, None] * (experts + 1) + tokens.experts.numpy()).ravel()
        size = len(self.token_ids) * (experts + 1)
        added = np.bincount(flat, minlength=size).reshape(-1, experts + 1)
        self.counts[tokens.layer] += added[:, :experts].astype(np.int32)

    def figures(self, layer: int, tokenizer: Any) -> list[list[dict[str, Any]]]:
        """For each expert its most frequent tokens: text, assignments, and N_{x,i} / N_x.

        The last is vocabulary specialisation (OLMoE, arXiv 2409.02060, section 5.4); evenly it is
        K / E.
        """
        counts = self.counts[layer]
        enough = np.minimum(_FEWEST, self.occurrences.max())
        frequent = self.occurrences >= enough
        share = counts / self.occurrences[:, None]
        listed = []
        for expert in range(counts.shape[1]):
            # Most seen beyond what the token's frequency alone explains.
            weight = np.where(frequent, counts[:, expert] * share[:, expert], 0)
            order = np.lexsort((self.token_ids, -weight))[:_LISTED]
            listed.append(
                [
                    {
                        "token": tokenizer.decode([int(self.token_ids[place])]),
                        "count": int(counts[place, expert]),
                        "fraction": float(f"{share[place, expert]:.6g}"),
                    }
                    for place in order
                    if counts[place, expert]
                ]
            )
        return listed
