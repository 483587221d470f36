"""Makes transformers' auto classes and PEFT know the MoE models, without importing either.

The auto classes keep names, and import a module such as `transformers.models.bert_moe` for them once a class is
asked for. `register_lazily` leaves a hook behind that adds our names, and a module of that name
which is as lazy, when transformers' own auto modules are imported, and at once where they are. PEFT's table of what
LoRA is put on where nobody says is filled in the same way.
"""

import importlib
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from moeify.modeling import CONFIGURATION, MODELING, REMOTE_CODE
from moeify.modeling.moe_families import FAMILIES, moe_type

__all__ = ["register_lazily"]

_MODELS = "transformers.models"


def register_lazily() -> None:
    """Register moeify's own model types with transformers' auto classes as soon as they exist.

    Afterwards `AutoConfig`, `AutoTokenizer`, every `AutoModel...` class and `pipeline` load these
    checkpoints without `trust_remote_code`, and PEFT's `LoraConfig` has default target modules for them. Calling it
    again changes nothing.
    """
    if not any(isinstance(finder, _PostImportFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _PostImportFinder())
    for name, action in _ACTIONS.items():
        if name in sys.modules:
            _act(action, sys.modules[name])


class _Models(ModuleType):
    """What the auto classes import for a model type; its classes are imported as they are asked."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(f"{self.__name__} has no {name}")
        module = CONFIGURATION if name.endswith("Config") else MODELING
        return getattr(importlib.import_module(f"{__package__}.{module}"), name)


class _PostImportFinder(MetaPathFinder):
    """Finds the auto modules as ever, and has their loader register the models afterwards."""

    _searching = False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
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
            f"moeify could not register its models with this version of {auto_module.__name__} ({error!r}); "
            "load them with trust_remote_code=True, and name target_modules for PEFT.",
            stacklevel=2,
        )


def _config_name(model_type: str) -> str:
    return REMOTE_CODE[model_type].auto_map["AutoConfig"].partition(".")[2]


def _register_configs(configuration_auto: ModuleType) -> None:
    for model_type in REMOTE_CODE:
        sys.modules.setdefault(f"{_MODELS}.{model_type}", _Models(model_type))
        configuration_auto.CONFIG_MAPPING_NAMES.setdefault(model_type, _config_name(model_type))


def _register_models(modeling_auto: ModuleType) -> None:
    for model_type, code in REMOTE_CODE.items():
        for auto_class, target in code.auto_map.items():
            if auto_class != "AutoConfig":
                mapping = getattr(modeling_auto, auto_class)._model_mapping
                _add(mapping, model_type, target.partition(".")[2])


def _register_tokenizers(tokenization_auto: ModuleType) -> None:
    for model_type, code in REMOTE_CODE.items():
        if code.tokenizer is not None:
            _add(tokenization_auto.TOKENIZER_MAPPING, model_type, code.tokenizer)


def _register_lora_targets(constants: ModuleType) -> None:
    for dense_type, family in FAMILIES.items():
        targets = [*family.adapted, "router"]
        constants.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.setdefault(moe_type(dense_type), targets)


def _add(mapping: Any, model_type: str, name: str) -> None:
    mapping._model_mapping.setdefault(model_type, name)
    mapping._reverse_config_mapping.setdefault(_config_name(model_type), model_type)


_ACTIONS: dict[str, Callable[[ModuleType], None]] = {
    f"{_MODELS}.auto.configuration_auto": _register_configs,
    f"{_MODELS}.auto.modeling_auto": _register_models,
    f"{_MODELS}.auto.tokenization_auto": _register_tokenizers,
    "peft.utils.constants": _register_lora_targets,
}
