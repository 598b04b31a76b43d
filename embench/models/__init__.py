"""The players, one family per file; ``embench.models()`` lists them.

The package is callable because the public name of that list is also the name of this folder.
"""

from __future__ import annotations

import sys
from types import ModuleType

from embench import registry


class _Listing(ModuleType):
    def __call__(self) -> dict[str, str]:
        return registry.models()


sys.modules[__name__].__class__ = _Listing
