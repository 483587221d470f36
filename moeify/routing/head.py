"""Losses of tokens from a model's head, in parts: logits [B, S, V] of a whole batch never exist."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from moeify.routing.loaded import base_model, replaced

if TYPE_CHECKING:
    from torch import Tensor, nn

IGNORED = -100
"""In place of a label: the token has none."""
_LOGITS_BYTES = 1 << 26
"""float32 logits that exist at a time; what their loss takes is a few times as much."""
_HEAD_NOT_LAST: set[type] = set()
"""Classes that compute with what their head gives, found when they ran."""


def token_losses(model: nn.Module, labels: Tensor, logits: Callable[[], Tensor]) -> Tensor:
    """Cross entropy of every token [B, S], float32; 0 where ``labels`` [B, S] are ``IGNORED``.

    ``logits`` runs ``model`` and returns its logits. Meanwhile the head gives losses in their
    place, so that its weights are used inside the model's forward pass, where sharded ones are
    whole. A class that changes logits behind its head has them taken whole: the head runs again,
    on what the layers gave, which whoever watches them sees once.
    """
    head = _head(model)
    if head is None or type(model) in _HEAD_NOT_LAST:
        return _whole(logits(), labels)
    given: list[Tensor] = []
    original = head.forward

    def forward(hidden: Tensor) -> Tensor:
        given.append(_in_parts(head, original, hidden, labels))
        return given[-1]

    base = base_model(model)
    # A class without a base of its own has the head in it, which has to run again.
    with nullcontext() if base is model else _run_once(base):
        with replaced(head, forward):
            found = logits()
        if given and found is given[-1]:
            return found
        _HEAD_NOT_LAST.add(type(model))
        return _whole(logits(), labels)


@contextmanager
def headless(model: nn.Module) -> Iterator[None]:
    """A while in which the head hands on what it reads, for those who want no logits."""
    head = _head(model)
    if head is None:
        yield
        return
    with replaced(head, lambda hidden: hidden):
        yield


@contextmanager
def _run_once(module: Any) -> Iterator[None]:
    """A while in which ``module`` runs the first time alone, and then gives the same."""
    original = module.forward
    given: list[Any] = []

    def forward(*args: Any, **options: Any) -> Any:
        if not given:
            given.append(original(*args, **options))
        return given[0]

    with replaced(module, forward):
        yield


def _head(model: Any) -> nn.Module | None:
    found: nn.Module | None = model.get_output_embeddings()
    return found


def _in_parts(head: Any, forward: Callable[[Tensor], Tensor], hidden: Tensor, labels: Tensor) -> Tensor:
    """Losses [B, S] from ``hidden`` [B, S, H]: logits of labelled tokens alone, some at a time."""
    import torch
    from torch.utils.checkpoint import checkpoint

    labelled = labels != IGNORED
    rows, words = hidden[labelled], labels[labelled]
    size = max(1, _LOGITS_BYTES // (4 * len(head.weight)))
    frozen = not any(parameter.requires_grad for parameter in head.parameters())

    def loss(rows: Tensor, words: Tensor) -> Tensor:
        return _cross_entropy(forward(rows), words)

    def part(rows: Tensor, words: Tensor) -> Tensor:
        if not (torch.is_grad_enabled() and rows.requires_grad):
            return loss(rows, words)
        if frozen:
            return _with_slope(loss, rows, words)
        # Logits are made once more on the way back, for the head's own gradient.
        result: Tensor = checkpoint(loss, rows, words, use_reentrant=False, preserve_rng_state=False)
        return result

    values = map(part, torch.split(rows, size), torch.split(words, size))
    zeros = hidden.new_zeros(labels.shape, dtype=torch.float32)
    return zeros.masked_scatter(labelled, torch.cat(list(values)))


def _with_slope(loss: Callable[[Tensor, Tensor], Tensor], rows: Tensor, words: Tensor) -> Tensor:
    """Losses [T] of ``rows`` [T, H], whose gradient is taken while the logits are there."""
    import torch

    leaf = rows.detach().requires_grad_()
    values = loss(leaf, words)
    (slope,) = torch.autograd.grad(values.sum(), leaf)
    # 0 in value; each loss depends on its own row alone.
    change = (rows - rows.detach()).float() * slope.float()
    return values.detach() + change.sum(-1)


def _whole(logits: Tensor, labels: Tensor) -> Tensor:
    return _cross_entropy(logits.flatten(0, 1), labels.flatten()).view(labels.shape)


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    from torch.nn.functional import cross_entropy

    return cross_entropy(logits.float(), labels, ignore_index=IGNORED, reduction="none")
