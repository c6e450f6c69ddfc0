"""Gymnasium environments: one image at a time, and N at once.

They may import `storage`, `data`, `backbones` and `routing`; learners are no concern of theirs.
"""

from rnr_gym.envs.routing import RoutingEnv
from rnr_gym.envs.vector import RoutingVectorEnv

__all__ = ["RoutingEnv", "RoutingVectorEnv"]
