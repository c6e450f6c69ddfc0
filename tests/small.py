"""Small backbones, images and paths that the tests share."""

import numpy as np
import torch
from torch import nn

from rnr_gym.backbones import zoo
from rnr_gym.data import ImageSet
from rnr_gym.routing.traversal import Traversal

KINDS = {
    "multipath": {"kind": "multipath", "widths": [16, 32], "blocks": [2, 1], "inner": [0.5, 1.0]},
    "whitened": {"kind": "multipath", "widths": [16, 32], "blocks": [2, 1], "inner": [0.5, 1.0], "whitened": True},
    "residual": {"kind": "channels", "style": "residual", "widths": [16, 32], "blocks": [1, 2], "groups": 2},
    "vgg": {"kind": "channels", "style": "vgg", "widths": [24, 48], "blocks": [1, 2], "groups": 3},
}
GLANCE = {"glance_widths": [8, 16], "glance_strides": [2, 1]}
EXITS = {
    "bare": {},
    "one exit": {"exits": [2]},
    "exits": {"exits": [1, 2]},
    "glance": GLANCE,
    "glance and exits": {"exits": [1, 2], **GLANCE},
}


def config(kind, exits="glance and exits", shape=(1, 8, 8), classes=3, summary_groups=0):
    """The architecture as JSON holds it: 3 layers."""
    parts = {**KINDS[kind], **EXITS[exits], "image_shape": list(shape), "classes": classes}
    if summary_groups:
        parts["summary_groups"] = summary_groups
    if parts.get("whitened") and parts.get("glance_widths"):
        parts["glance_strides"] = []
    return parts


def backbone(kind, exits="glance and exits", shape=(1, 8, 8), classes=3, seed=0, summary_groups=0):
    """A network in evaluation mode in which every norm and every stored statistic differs from the next."""
    return shaken(zoo.from_config(config(kind, exits, shape, classes, summary_groups), seed), seed)


@torch.no_grad()
def shaken(network, seed=0):
    """Draw norms, statistics and heads at random, so that taking the wrong one shows."""
    generator = torch.Generator().manual_seed(seed)

    def around(tensor, middle, spread):
        tensor.copy_(middle + spread * (2 * torch.rand(tensor.shape, generator=generator) - 1))

    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, middle in ((module.running_mean, 0.0), (module.running_var, 1.0), (module.weight, 1.0), (module.bias, 0.0)):
                around(tensor, middle, 0.5)
        if isinstance(module, nn.Linear):
            module.weight *= 4.0
    for buffer in (network.image_mean, network.image_std, network.summary_std, network.glance_std):
        around(buffer, 0.5, 0.2)
    for buffer in (network.summary_mean, network.glance_mean):
        around(buffer, 0.3, 0.3)
    network.loss_scale.fill_(0.75)
    return network


def images(count=24, shape=(1, 8, 8), classes=3, seed=0):
    """Random images with random labels, every class among them."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(count) % classes)
    return ImageSet.of(rng.integers(0, 256, (count, *shape), dtype=np.uint8), labels, tuple("abcdefghij"[:classes]))


def pixels(count=6, shape=(1, 8, 8), seed=0):
    """A batch of random uint8 images as a tensor."""
    return torch.from_numpy(np.array(images(count, shape, seed=seed).images))


def paths(spec, count, seed=0):
    """Random whole paths int8 `(count, T)`, exits among them where the spec has them, -1 after an exit."""
    rng = np.random.default_rng(seed)
    drawn = np.array([[rng.choice(np.flatnonzero(row)) for row in spec.valid] for _ in range(count)], np.int8)
    exited = (drawn == 0) & spec.has_exits
    drawn[np.cumsum(exited, 1) - exited > 0] = -1
    return drawn


def travel(network, batch, ways, exits=None):
    """Send images `(N, C, H, W)` down their paths `(N, T)`."""
    walk = Traversal.start(network, batch, exits)
    for layer in range(network.num_layers):
        walk = walk.step(ways[:, layer].astype(np.int64))
    return walk
