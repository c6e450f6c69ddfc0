"""rnr-gym: route images through networks, one decision at a time.

`import rnr_gym` registers the environments with Gymnasium. Everything named here is loaded when it is first used, so
the import itself costs no torch and no data.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from rnr_gym.registration import register

if TYPE_CHECKING:
    from rnr_gym.backbones import Backbone, ChannelPrunedNet, MultiPathResNet
    from rnr_gym.classifier import RoutedClassifier
    from rnr_gym.data import ImageSet
    from rnr_gym.envs import RoutingEnv, RoutingVectorEnv
    from rnr_gym.routing.route_table import RouteTable
    from rnr_gym.routing.traversal import Traversal

__version__ = "0.1.0"

_HOMES = {
    "Backbone": "backbones",
    "ChannelPrunedNet": "backbones",
    "ImageSet": "data",
    "MultiPathResNet": "backbones",
    "RouteTable": "routing.route_table",
    "RoutedClassifier": "classifier",
    "RoutingEnv": "envs",
    "RoutingVectorEnv": "envs",
    "Traversal": "routing.traversal",
}
__all__ = [
    "Backbone",
    "ChannelPrunedNet",
    "ImageSet",
    "MultiPathResNet",
    "RouteTable",
    "RoutedClassifier",
    "RoutingEnv",
    "RoutingVectorEnv",
    "Traversal",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module `rnr_gym` has no attribute {name!r}")
    return getattr(import_module(f"rnr_gym.{_HOMES[name]}"), name)


register()
