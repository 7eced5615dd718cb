"""InCo: federated learning with clients that cannot all hold the same model.

Importing the package loads no torch. The two library calls are resolved on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inco.server.cross_layer import cross_layer_gradients
    from inco.server.pairs import cross_layer_pairs

__version__ = "0.1.0"
__all__ = ["__version__", "cross_layer_gradients", "cross_layer_pairs"]

_LAZY = {
    "cross_layer_gradients": "inco.server.cross_layer",
    "cross_layer_pairs": "inco.server.pairs",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'inco' has no attribute {name!r}")
    value = getattr(import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
