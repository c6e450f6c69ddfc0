"""Routable networks."""

from rnr_gym.backbones.base import Backbone, Layer
from rnr_gym.backbones.channels import ChannelPrunedNet
from rnr_gym.backbones.multipath import MultiPathResNet

__all__ = ["Backbone", "ChannelPrunedNet", "Layer", "MultiPathResNet"]
