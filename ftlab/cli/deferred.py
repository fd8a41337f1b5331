"""Packages that libraries import as they start and ftlab seldom uses: their files run when they are looked into.

`import` gives the module as ever. The first look at what is not there yet, and the import of a submodule is one, loads
it as it would have been loaded: who needs one finds it whole. importlib.util.LazyLoader takes more for a look, a second
`import` and torchmetrics' question among it.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


def _hamming(*args: Any, **options: Any) -> Any:
    import scipy.signal

    return scipy.signal.windows.hamming(*args, **options)


DEFERRED: dict[str, dict[str, Any]] = {
    # torchmetrics, and so Lightning, looks for a name that newer releases lack, and puts it there as it stands here
    "scipy.signal": {"hamming": _hamming},
    "bitsandbytes": {},  # peft, of which only adapters want it; torch's inductor comes with it
}
"""Their names, with what they hold before they are loaded."""

_lock = threading.RLock()  # of all, or two that want each other would wait for ever
_waiting: dict[str, Loader] = {}
"""What will load those that have been imported; other hooks may have put their own into the module's spec."""


def defer() -> None:
    """Has them wait from now on, in this process; what is imported already stays as it is."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in DEFERRED:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        spec = next((found for finder in others if (found := finder.find_spec(fullname, path, target))), None)
        if spec and spec.loader:
            spec.loader = _Later(spec.loader)
        return spec


class _Later(Loader):
    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def exec_module(self, module: ModuleType) -> None:
        vars(module).pop("__path__", None)  # a look at it, for a submodule, is one that loads
        vars(module).update(DEFERRED[module.__name__])
        _waiting[module.__name__] = self.loader
        module.__class__ = _Deferred


class _Deferred(ModuleType):
    __spec__: ModuleSpec

    def __getattr__(self, name: str) -> Any:  # called for what is not there
        with _lock:
            loader = _waiting.pop(self.__name__, None)  # None while it is loaded, by this thread
            if loader:
                _load(self, loader)
        return ModuleType.__getattribute__(self, name)


def _load(module: _Deferred, loader: Any) -> None:
    spec = module.__spec__
    before = spec.loader
    try:
        spec.loader = module.__loader__ = loader
        if spec.submodule_search_locations is not None:
            module.__path__ = spec.submodule_search_locations
        loader.exec_module(module)
        module.__class__ = ModuleType  # type: ignore[assignment]
    except BaseException:  # the next look tries again
        spec.loader = module.__loader__ = before
        vars(module).pop("__path__", None)
        _waiting[module.__name__] = loader
        raise
