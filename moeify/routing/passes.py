"""Running a model over text: whole, or with the weights of one layer at a time in memory."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from moeify.checkpoint.reader import Checkpoint, read_config
from moeify.checkpoint.staging import check_free_space, output_errors, scratch_folder
from moeify.checkpoint.tensor_file import write_tensors
from moeify.errors import RoutingError
from moeify.families.base import DenseLayout
from moeify.families.moe_layout import MoeLayout
from moeify.progress import Stage, stage
from moeify.routing.loaded import base_model, is_encoder, layer_stack, replaced
from moeify.routing.loading import load_model, outline, require_accelerate
from moeify.routing.memory import GROWN, fits_memory, give_back
from moeify.routing.running import run_model

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

Layout = DenseLayout | MoeLayout
Prepare = Callable[[Any], None]
"""Told every model that was loaded, of which a part has its weights."""


@dataclass(frozen=True, kw_only=True)
class Pass:
    """One walk over all batches.

    ``run`` takes a batch's number and its ``input_ids`` and ``attention_mask`` [B, S], and returns
    what the model returns. Hooks on modules of ``model`` see the batch where the module's weights
    are in memory; those of other layers are on the meta device.
    """

    model: nn.Module
    run: Callable[[int, Mapping[str, Tensor]], Any]


class Passes(Protocol):
    """Passes that together take every batch through every layer, in the order of the layers."""

    def __len__(self) -> int: ...

    def check_room(self, tokens: int) -> None:
        """Raise ``OutputError`` where the disk has no room for what layers give for ``tokens``."""

    def opened(self, place: int) -> Any:
        """A context that yields ``Pass`` number ``place``."""


class WholeModel:
    """One pass with all weights in memory; ``head`` says whether the model's head runs."""

    def __init__(self, model: nn.Module, *, head: bool = False) -> None:
        self.model, self.head = model, head

    def __len__(self) -> int:
        return 1

    def check_room(self, tokens: int) -> None:
        """Nothing goes to disk."""

    @contextmanager
    def opened(self, place: int) -> Iterator[Pass]:
        """The one pass."""
        yield Pass(model=self.model, run=partial(_forward, self.model, self.head))


class LayerByLayer:
    """A pass for each layer, whose weights alone are loaded, and one more for the ``head``.

    In pass n layers before n - 1 and after n hand their input on, layer n - 1 gives what it gave in
    the pass before, and layer n computes. So every layer is called as its model calls it, and what
    stands between layers happens. What layers give lies in files in ``scratch``, in memory where
    that is None: that of two layers, each tokens x H values in the model's dtype. ``source`` is a
    folder, or a model that is in memory as a whole.
    """

    def __init__(
        self,
        source: Path | nn.Module,
        layout: Layout,
        scratch: Path | None = None,
        *,
        head: bool = False,
        dtype: str = "auto",
        prepare: Prepare | None = None,
    ) -> None:
        self.source, self.layout, self.head, self.states = source, layout, head, _States(scratch)
        self.dtype, self.prepare = dtype, prepare
        # oneDNN keeps buffers for the last 1,024 shapes, and experts meet a new one in each batch.
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "32")
        if isinstance(source, Path):
            require_accelerate()
        model = outline(source) if isinstance(source, Path) else source
        names = {id(module): name for name, module in model.named_modules()}
        stack = layer_stack(model, layout.layer)
        self.stack, self.layers = names[id(stack)], len(list(stack.children()))
        base = names[id(base_model(model))]
        beside = list(_beside(model, self.stack))
        self._head = [n for n in beside if base and not n.startswith(f"{base}.")]
        self._rest = [n for n in beside if n not in self._head]

    def __len__(self) -> int:
        return self.layers + self.head

    def check_room(self, tokens: int) -> None:
        """Raise ``OutputError`` where the disk has no room for what layers give for ``tokens``."""
        if self.states.folder is not None and isinstance(self.source, Path):
            hidden_size = self.layout.dims(read_config(self.source))["H"]
            check_free_space(self.states.folder, state_bytes(tokens, hidden_size))

    def holds(self, place: int, batches: int) -> bool:
        """Whether pass ``place`` can start: what the layer before gave is there."""
        return place == 0 or all(self.states.holds(place - 1, n) for n in range(batches))

    @contextmanager
    def opened(self, place: int) -> Iterator[Pass]:
        """The pass of layer ``place``, or of the head; its weights go when the context ends."""
        model: Any = self.source
        if isinstance(model, Path):
            model = load_model(model, self.dtype, self._devices(place))
            if self.prepare is not None:
                self.prepare(model)
        current: dict[str, Any] = {}
        layers = list(model.get_submodule(self.stack).children())

        def run(number: int, inputs: Mapping[str, Tensor]) -> Any:
            if place:
                current["before"] = self.states.read(place - 1, number)
            output = _forward(model, place == self.layers, inputs=inputs, number=number)
            if place < self.layers:
                self.states.write(place, number, _hidden(layers[place], current.pop("given"), self.layout.gives))
            return output

        with ExitStack() as undone:
            for number, layer in enumerate(layers):
                if number == place:
                    hook = layer.register_forward_hook(lambda *c: current.update(given=c[-1]))
                    undone.callback(hook.remove)
                else:
                    replay = current if number == place - 1 else {}
                    undone.enter_context(replaced(layer, partial(_handed_on, replay, self.layout.gives)))
            try:
                yield Pass(model=model, run=run)
            finally:
                if isinstance(self.source, Path):
                    model.to("meta")  # whoever still holds the model holds no weights
                    give_back()

    def _devices(self, place: int) -> dict[str, Any]:
        """Where each module goes, as ``from_pretrained`` takes it."""
        import torch

        # As objects: accelerate takes the name "cpu" for a place to offload to.
        cpu, meta = torch.device("cpu"), torch.device("meta")
        return {
            **dict.fromkeys(self._rest, cpu),
            **dict.fromkeys(self._head, cpu if place == self.layers else meta),
            **{f"{self.stack}.{n}": cpu if n == place else meta for n in range(self.layers)},
        }


def walking(name: str, passes: Passes, blocks: int) -> AbstractContextManager[Stage]:
    """The stage in which ``passes`` take so many ``blocks`` of text; layer by layer no unit says how far it is."""
    return stage(name, len(passes) * blocks, "blocks" if len(passes) == 1 else "")


def runs_by_layer(*checkpoints: Checkpoint, low_memory: bool | None, dtype: str = "auto") -> bool:
    """What the user says, and where nothing is said, whether all weights do not fit into memory."""
    return not fits_memory(*checkpoints, dtype=dtype) if low_memory is None else low_memory


def state_bytes(tokens: int, hidden_size: int) -> int:
    """Bytes of what two layers give for ``tokens``, in float32."""
    return 2 * 4 * tokens * hidden_size


@contextmanager
def passes_over(
    checkpoint: Checkpoint,
    layout: Layout,
    *,
    low_memory: bool | None,
    scratch: Path | None = None,
    head: bool = False,
    dtype: str = "auto",
    prepare: Prepare | None = None,
) -> Iterator[Passes]:
    """The passes over a checkpoint, layer by layer where ``runs_by_layer`` says so.

    What layers give then lies below ``scratch``, or where temporary files do; the next run there
    clears it after a kill.
    """
    if runs_by_layer(checkpoint, low_memory=low_memory, dtype=dtype):
        with walk_by_layer(checkpoint, layout, scratch=scratch, head=head, dtype=dtype, prepare=prepare) as passes:
            yield passes
        return
    model = load_model(checkpoint.folder, dtype)
    if prepare is not None:
        prepare(model)
    yield WholeModel(model, head=head)


@contextmanager
def walk_by_layer(
    checkpoint: Checkpoint,
    layout: Layout,
    *,
    scratch: Path | None = None,
    head: bool = False,
    dtype: str = "auto",
    prepare: Prepare | None = None,
) -> Iterator[LayerByLayer]:
    """The passes with the weights of one layer in memory, and what layers give below ``scratch``."""
    with scratch_folder(scratch or Path(tempfile.gettempdir())) as states:
        yield LayerByLayer(checkpoint.folder, layout, states, head=head, dtype=dtype, prepare=prepare)


class _States:
    """What layers give, a file for each batch; layers two apart share their files."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._held: dict[tuple[int, int], Tensor] = {}

    def _path(self, layer: int, number: int) -> Path:
        assert self.folder is not None, "in memory otherwise"
        return self.folder / f"{layer % 2}-{number}.safetensors"

    def holds(self, layer: int, number: int) -> bool:
        """Whether a layer's values for a batch are there."""
        if self.folder is None:
            return (layer % 2, number) in self._held
        return self._path(layer, number).exists()

    def read(self, layer: int, number: int) -> Tensor:
        from safetensors.torch import load_file

        if self.folder is None:
            return self._held[layer % 2, number]
        hidden: Tensor = load_file(self._path(layer, number))["hidden"]
        return hidden

    def write(self, layer: int, number: int, hidden: Tensor) -> None:
        if self.folder is None:
            self._held[layer % 2, number] = hidden
            return
        with output_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            write_tensors({"hidden": hidden}, self._path(layer, number))


def device_of(model: nn.Module) -> torch.device:
    """Where the weights are that are in memory."""
    return next(p.device for p in model.parameters() if not p.is_meta)


def _forward(model: nn.Module, head: bool, number: int, inputs: Mapping[str, Tensor]) -> Any:
    give_back(GROWN)
    placed: dict[str, Any] = {name: tensor.to(device_of(model)) for name, tensor in inputs.items()}
    called = model if head else base_model(model)
    if not is_encoder(model):
        placed["use_cache"] = False
    return run_model(called, **placed, return_dict=True)


def _handed_on(current: Mapping[str, Tensor], gives: int, hidden_states: Tensor, *_: Any, **__: Any) -> Any:
    """In place of a layer's forward: what it gave before, else its input."""
    hidden = current.get("before", hidden_states)
    return (hidden, *[None] * (gives - 1)) if gives else hidden


def _hidden(layer: nn.Module, given: Any, gives: int) -> Tensor:
    import torch

    if gives and isinstance(given, tuple) and given[1:] == (None,) * (gives - 1):
        given = given[0]
    if not isinstance(given, torch.Tensor):
        raise RoutingError(
            f"a {type(layer).__name__} gives more than hidden states, so that it cannot run by itself",
            "leave --low-memory out",
        )
    return given


def _beside(model: nn.Module, path: str) -> Iterator[str]:
    """Names of the modules, parameters and buffers that stand beside the way to ``path``."""
    module, before = model, ""
    for part in path.split("."):
        for name, _ in (
            *module.named_children(),
            *module.named_parameters(recurse=False),
            *module.named_buffers(recurse=False),
        ):
            if name != part:
                yield before + name
        module, before = module.get_submodule(part), f"{before}{part}."
