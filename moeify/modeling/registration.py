"""Makes transformers' auto classes know the MoE models, without importing transformers.

`register_lazily` leaves a hook behind that acts when transformers' own auto modules are imported,
and at once for those that are already there. Model classes stay unimported until one is asked
for: transformers' BERT itself imports the auto modules, so importing it from the hook would fail.
"""

import importlib
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from moeify.modeling import REMOTE_CODE

__all__ = ["register_lazily"]

_AUTO = "transformers.models.auto"


def register_lazily() -> None:
    """Register bert_moe and gpt2_moe with transformers' auto classes as soon as they exist.

    Afterwards `AutoConfig`, `AutoTokenizer`, every `AutoModel...` class and `pipeline` load these
    checkpoints without `trust_remote_code`. Calling it again changes nothing.
    """
    if not any(isinstance(finder, _PostImportFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _PostImportFinder())
    for name, action in _ACTIONS.items():
        if name in sys.modules:
            _act(action, sys.modules[name])


@dataclass(frozen=True)
class _Reference:
    """A class that may not be imported yet."""

    module: str
    name: str

    @classmethod
    def to(cls, key: Any) -> Any:
        """The reference to a class; anything else stands for itself."""
        return cls(key.__module__, key.__name__) if isinstance(key, type) else key

    def load(self) -> Any:
        return getattr(importlib.import_module(self.module), self.name)


class _LazyContent(dict[Any, Any]):
    """The registered part of an auto mapping; keys and values may be references.

    A reference is replaced by its class once that class is asked for. A configuration class that
    exists is found under its reference.
    """

    def __contains__(self, key: object) -> bool:
        return super().__contains__(key) or super().__contains__(_Reference.to(key))

    def __getitem__(self, key: Any) -> Any:
        if not super().__contains__(key):
            self[key] = self.pop(_Reference.to(key))
        value = super().__getitem__(key)
        if isinstance(value, _Reference):
            value = self[key] = value.load()
        return value

    def get(self, key: Any, default: Any = None) -> Any:
        try:
            return self[key]
        except KeyError:
            return default

    # Pickling a mapping copies its content with dict(), which heeds this method and keys().
    def __iter__(self) -> Iterator[Any]:
        for reference in [key for key in super().__iter__() if isinstance(key, _Reference)]:
            self[reference.load()] = self.pop(reference)
        return super().__iter__()

    def keys(self) -> Any:
        return list(self)

    def values(self) -> Any:
        return [self[key] for key in self]

    def items(self) -> Any:
        return [(key, self[key]) for key in self]


class _PostImportFinder(MetaPathFinder):
    """Finds the auto modules as ever, and has their loader register the models afterwards."""

    _searching = False

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        if fullname not in _ACTIONS or self._searching:
            return None
        self._searching = True
        try:
            spec = find_spec(fullname)
        finally:
            self._searching = False
        if spec is not None and spec.loader is not None:
            self._wrap(spec.loader, _ACTIONS[fullname])
        return spec

    @staticmethod
    def _wrap(loader: Any, action: Callable[[ModuleType], None]) -> None:
        exec_module = loader.exec_module

        def exec_and_act(module: ModuleType) -> None:
            exec_module(module)
            _act(action, module)

        loader.exec_module = exec_and_act


def _act(action: Callable[[ModuleType], None], auto_module: ModuleType) -> None:
    try:
        action(auto_module)
    except (AttributeError, ImportError, KeyError, TypeError, ValueError) as error:
        # Raised from here, it would make transformers itself impossible to import.
        warnings.warn(
            f"moeify could not register its models with this version of transformers ({error!r}); "
            "load them with trust_remote_code=True.",
            stacklevel=2,
        )


def _ours(target: str) -> _Reference:
    module, name = target.split(".")
    return _Reference(f"{__package__}.{module}", name)


def _lazy_content(mapping: Any) -> _LazyContent:
    if not isinstance(mapping._extra_content, _LazyContent):
        mapping._extra_content = _LazyContent(mapping._extra_content)
    return mapping._extra_content


def _register_configs(configuration_auto: ModuleType) -> None:
    content = _lazy_content(configuration_auto.CONFIG_MAPPING)
    for model_type, code in REMOTE_CODE.items():
        content.setdefault(model_type, _ours(code.auto_map["AutoConfig"]))


def _register_models(modeling_auto: ModuleType) -> None:
    for model_type, code in REMOTE_CODE.items():
        config = _ours(code.auto_map["AutoConfig"])
        for auto_class, target in code.auto_map.items():
            if auto_class != "AutoConfig":
                mapping, model = getattr(modeling_auto, auto_class)._model_mapping, _ours(target)
                _add(_lazy_content(mapping), config, model)
                # Tools ask the plain dict behind it, some of them before there is a model.
                mapping._model_mapping.setdefault(model_type, model.name)


def _register_tokenizers(tokenization_auto: ModuleType) -> None:
    content = _lazy_content(tokenization_auto.TOKENIZER_MAPPING)
    for model_type, code in REMOTE_CODE.items():
        _add(content, _ours(code.auto_map["AutoConfig"]), _TOKENIZERS[model_type])


def _add(content: _LazyContent, config: _Reference, value: _Reference) -> None:
    # Registered before, the configuration may stand there as a class by now.
    config_module = sys.modules.get(config.module)
    if getattr(config_module, config.name, config) not in content:
        content[config] = value


_TOKENIZERS = {
    "bert_moe": _Reference("transformers.models.bert", "BertTokenizer"),
    "gpt2_moe": _Reference("transformers.models.gpt2", "GPT2Tokenizer"),
}

_ACTIONS: dict[str, Callable[[ModuleType], None]] = {
    f"{_AUTO}.configuration_auto": _register_configs,
    f"{_AUTO}.modeling_auto": _register_models,
    f"{_AUTO}.tokenization_auto": _register_tokenizers,
}
