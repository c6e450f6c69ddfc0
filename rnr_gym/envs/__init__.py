"""Gymnasium environments."""

from rnr_gym.envs.routing import RoutingEnv
from rnr_gym.envs.vector import RoutingVectorEnv

__all__ = ["RoutingEnv", "RoutingVectorEnv"]
