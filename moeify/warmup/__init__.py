"""Getting routers ready: fitted to data without gradients, then trained."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _CallablePackage(ModuleType):
    """The package and the function ``moeify.warmup`` share a name.

    Importing anything from the package puts it in the function's place, so it does the same.
    """

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        from moeify.warmup.warmup import warmup

        return warmup(*arguments, **options)


sys.modules[__name__].__class__ = _CallablePackage
