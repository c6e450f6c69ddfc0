"""rnr-gym: route images through networks, one decision at a time.

`import rnr_gym` registers the environments with Gymnasium. Every name in `__all__` is imported when
it is first used, so the import itself loads neither torch nor data.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from rnr_gym.registration import register

# For type checkers and editors, which do not run `__getattr__`. `as` marks a name as public.
if TYPE_CHECKING:
    from rnr_gym import data
    from rnr_gym.agents.base import FitConfig as FitConfig
    from rnr_gym.backbones import Backbone as Backbone
    from rnr_gym.backbones import ChannelPrunedNet as ChannelPrunedNet
    from rnr_gym.backbones import MultiPathResNet as MultiPathResNet
    from rnr_gym.backbones import Routable as Routable
    from rnr_gym.backbones import routable as routable
    from rnr_gym.classifier import RoutedClassifier as RoutedClassifier
    from rnr_gym.data import ImageSet as ImageSet
    from rnr_gym.envs import RoutingEnv as RoutingEnv
    from rnr_gym.envs import RoutingVectorEnv as RoutingVectorEnv
    from rnr_gym.experiments import runs
    from rnr_gym.experiments.entries import enter_paths as enter_paths
    from rnr_gym.experiments.entries import enter_router as enter_router
    from rnr_gym.experiments.evaluation import evaluate as evaluate
    from rnr_gym.experiments.evaluation import evaluate_paths as evaluate_paths
    from rnr_gym.onnx import export_onnx as export_onnx
    from rnr_gym.routing.profiles import Profile as Profile
    from rnr_gym.routing.profiling import profile as profile
    from rnr_gym.routing.protocols import Router as Router
    from rnr_gym.routing.rewards import TRADEOFF_RANGE as TRADEOFF_RANGE
    from rnr_gym.routing.route_table import RouteTable as RouteTable
    from rnr_gym.routing.spec import RoutingSpec as RoutingSpec
    from rnr_gym.routing.traversal import Traversal as Traversal
    from rnr_gym.sb3 import make_vec_env as make_vec_env
    from rnr_gym.testing import check_backbone as check_backbone
    from rnr_gym.training.calibration import calibrate_paths as calibrate_paths
    from rnr_gym.training.exits import fit_exits as fit_exits
    from rnr_gym.training.retrieval import for_retrieval as for_retrieval

    fit_run = runs.fit
    load_folder = data.load_folder
    load_images = data.load
    load_run = runs.load

__version__ = "0.1.0"

_HOMES: dict[str, str | tuple[str, str]] = {
    "Backbone": "backbones",
    "ChannelPrunedNet": "backbones",
    "FitConfig": "agents.base",
    "ImageSet": "data",
    "MultiPathResNet": "backbones",
    "Profile": "routing.profiles",
    "Routable": "backbones",
    "RouteTable": "routing.route_table",
    "RoutedClassifier": "classifier",
    "Router": "routing.protocols",
    "RoutingEnv": "envs",
    "RoutingSpec": "routing.spec",
    "RoutingVectorEnv": "envs",
    "TRADEOFF_RANGE": "routing.rewards",
    "Traversal": "routing.traversal",
    "calibrate_paths": "training.calibration",
    "check_backbone": "testing",
    "enter_paths": "experiments.entries",
    "enter_router": "experiments.entries",
    "evaluate": "experiments.evaluation",
    "evaluate_paths": "experiments.evaluation",
    "export_onnx": "onnx",
    "fit_exits": "training.exits",
    "for_retrieval": "training.retrieval",
    "fit_run": ("experiments.runs", "fit"),
    "load_folder": "data",
    "load_images": ("data", "load"),
    "load_run": ("experiments.runs", "load"),
    "make_vec_env": "sb3",
    "profile": "routing.profiling",
    "routable": "backbones",
}
"""The module of each public name; with the attribute's name there, if it is another."""

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    # A module, which is also loaded when it is first used.
    if name == "testing":
        return import_module("rnr_gym.testing")
    if name not in _HOMES:
        raise AttributeError(f"module `rnr_gym` has no attribute {name!r}")

    home = _HOMES[name]
    if isinstance(home, tuple):
        module, attribute = home
    else:
        module, attribute = home, name
    return getattr(import_module(f"rnr_gym.{module}"), attribute)


# At import, because `gymnasium.make` knows only ids that are registered.
register()
