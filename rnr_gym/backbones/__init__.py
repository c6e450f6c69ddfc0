"""Routable networks: their building blocks, their MACs, and named architectures with weights.

May import `storage` and `data`: a network knows neither routing nor environments nor rewards.
"""

from rnr_gym.backbones.base import Backbone
from rnr_gym.backbones.channels import ChannelPrunedNet
from rnr_gym.backbones.layer import Layer
from rnr_gym.backbones.multipath import MultiPathResNet
from rnr_gym.backbones.offshelf import Routable, routable

__all__ = ["Backbone", "ChannelPrunedNet", "Layer", "MultiPathResNet", "Routable", "routable"]
