"""A router and a backbone as one thing to deploy."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from rnr_gym.rewards import check_tradeoff
from rnr_gym.spec import RoutingSpec
from rnr_gym.summaries import observe
from rnr_gym.types import Router, Walk

AnyWalk = TypeVar("AnyWalk", bound=Walk)


def route(walk: AnyWalk, spec: RoutingSpec, router: Router, tradeoff: float) -> AnyWalk:
    """Let a router decide until every image of a walk has been answered."""
    count, state = len(walk.layer), None
    start, weights = np.ones(count, np.bool_), np.full(count, tradeoff)
    while not walk.done.all():
        seen = observe(spec.layout, walk.summary(), walk.layer, walk.came_by, walk.macs / spec.plain_macs, weights)
        actions, state = router.predict(seen, state, start, deterministic=True)
        start = np.zeros(count, np.bool_)
        walk = walk.step(spec.nearest[np.minimum(walk.layer, spec.num_layers - 1), actions])
    return walk


def decision_macs(router: Router, spec: RoutingSpec) -> int:
    """MACs that a router spends on one decision: convolutions and matrix products that run in its `predict`."""
    with FlopCounterMode(display=False) as counter:
        router.predict(np.zeros((1, spec.layout.size), np.float32), None, np.ones(1, np.bool_), deterministic=True)
    return int(counter.get_total_flops()) // 2


class Routed(NamedTuple):
    """What a classifier says of N images.

    Attributes:
        logits: float32 `(N, classes)`.
        path: int8 `(N, T)`, executed sub-paths, -1 after an exit.
        macs: int64 `(N,)`, the router's own included.
        compute: float64 `(N,)`, MACs over those of the plain network.
    """

    logits: Tensor
    path: NDArray[np.int8]
    macs: NDArray[np.int64]
    compute: NDArray[np.float64]


class Curve(NamedTuple):
    """Mean compute (router included) on `route` at ascending trade-offs: what a budget is translated by."""

    tradeoff: list[float]
    compute: list[float]

    def tradeoff_for(self, compute: float) -> float:
        """The trade-off at which the mean compute on `route` was `compute`; a `ValueError` outside what was measured."""
        falling = np.minimum.accumulate(np.array(self.compute))
        low, high = float(falling[-1]), float(falling[0])
        if not low <= compute <= high:
            raise ValueError(f"`compute` must lie in {low:.3f}..{high:.3f}, what this router was measured at on `route`, got {compute!r}")
        return float(np.exp(np.interp(-compute, -falling, np.log(self.tradeoff))))


class RoutedClassifier:
    """A backbone with a router that chooses each image's path.

    >>> routed = classifier(images, compute=0.4)   # a mean budget; or tradeoff=0.3, or neither for the plain network

    Args:
        backbone: in evaluation mode, on the device it is to run on.
        router: anything with `predict`.
        exits: as the router was fitted.
        curve: needed for `compute=`.
    """

    def __init__(self, backbone: Any, router: Router, exits: bool = True, curve: Curve | None = None) -> None:
        self.backbone, self.router, self.curve = backbone, router, curve
        self.spec = backbone.spec(exits)
        self.decision_macs = decision_macs(router, self.spec)

    @torch.inference_mode()
    def __call__(self, images: Tensor, compute: float | None = None, tradeoff: float | None = None) -> Routed:
        """Classify images `(N, C, H, W)`, uint8 or float 0..1, at a mean compute or a trade-off; the plain network with neither."""
        if compute is not None and tradeoff is not None:
            raise ValueError(f"`compute` and `tradeoff` exclude each other, got {compute!r} and {tradeoff!r}")
        if compute is not None:
            if self.curve is None:
                raise ValueError("`compute` needs a router whose curve was measured; pass `tradeoff`, or fit it with `rnr-gym train`")
            tradeoff = self.curve.tradeoff_for(compute)
        if tradeoff is None:
            return self._plain(images)
        exits = np.flatnonzero(self.spec.valid[:, 0]).tolist() if self.spec.has_exits else ()
        walk = route(_walk(self.backbone, images, exits), self.spec, self.router, check_tradeoff(tradeoff)[0])
        macs = walk.macs + self.decision_macs * (walk.path >= 0).sum(1)
        return Routed(walk.traversal.logits.float(), walk.path, macs, macs / self.spec.plain_macs)

    def _plain(self, images: Tensor) -> Routed:
        walk = _walk(self.backbone, images, ())
        for _ in range(self.spec.num_layers):
            walk = walk.step(np.full(len(images), self.spec.full_path))
        return Routed(walk.traversal.logits.float(), walk.path, walk.macs, walk.macs / self.spec.plain_macs)


def _walk(backbone: Any, images: Tensor, exits: Any) -> Any:
    from rnr_gym.sources import LiveWalk
    from rnr_gym.traversal import Traversal

    return LiveWalk(Traversal.start(backbone, images.to(backbone.image_mean.device), exits))
