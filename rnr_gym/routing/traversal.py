"""A batch of images in progress through a backbone: the one place where it runs layer by layer."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rnr_gym import checks
from rnr_gym.backbones.base import Backbone
from rnr_gym.backbones.blocks import pooled_channels
from rnr_gym.routing.observations import CLIP, confidence_features, quantised
from rnr_gym.routing.protocols import Indices


class Group(NamedTuple):
    """Images that wait at one layer with features of one shape.

    Where the glance answers for layer 0, the stem has not run there yet: the features are the
    prepared images.

    Attributes:
        layer: the layer.
        prev_sub_path: the sub-path executed last; None where the backbone does not read it.
        batch_idx: int64 `(n,)`, positions in the batch.
        features: `(n, C, H, W)`.
        pooled: `pooled_channels` of them, `(n, C)`; None if nobody has needed it yet.
    """

    layer: int
    prev_sub_path: int | None
    batch_idx: Indices
    features: Tensor
    pooled: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Traversal:
    """N images in progress, a `RoutingState`. Immutable: `step` returns the next one.

    Make one with `Traversal.start`. Gradients pass through it, unless it was started where they are
    disabled: then all its steps run in inference mode.

    On arrival at a layer its exit head runs and is charged, if `exit_layers` has that layer. The
    stem runs with layer 0's sub-path where the glance is on, so that an answer at the glance does
    not pay for it; otherwise it runs at once.

    Attributes:
        backbone: the network.
        exit_layers: layers whose exit head runs on arrival; 0 stands for the glance.
        grad: whether gradients pass through it.
        groups: the feature maps in progress.
        layer: int64 `(N,)`, the decision an image waits for; T once it has been answered.
        prev_sub_path: int64 `(N,)`, the sub-path executed last; K - 1 at layer 0.
        macs: int64 `(N,)`, charged so far.
        path: int8 `(N, T)`, executed sub-paths, -1 where none was.
        logits: float `(N, classes)`, the answers; zero until answered.
        exit_logits: float `(N, classes)`, of the exit head that ran last; zero before the first.
        glance_pooled: float `(N, G)`, the glance's pooled features; zero where it did not run.
        glance_logits: float `(N, classes)`, the glance's logits; zero where it did not run.
    """

    backbone: Backbone
    exit_layers: frozenset[int]
    grad: bool
    groups: tuple[Group, ...]
    layer: Indices
    prev_sub_path: Indices
    macs: Indices
    path: NDArray[np.int8]
    logits: Tensor
    exit_logits: Tensor
    glance_pooled: Tensor
    glance_logits: Tensor

    @classmethod
    def start(
        cls,
        backbone: Backbone,
        images: Tensor,
        exits: Collection[int] | None = None,
    ) -> Traversal:
        """Run the glance, or without it the stem, on a batch of images.

        Args:
            backbone: the network.
            images: `(N, C, H, W)`, uint8 or float 0..1, on the backbone's device.
            exits: layers whose exits run and are charged; None for all that the backbone has, `()`
                for none.

        Raises:
            ValueError: `exits` has a layer without an exit, or leaves out a glance that the
                backbone's exit heads read; or the images are not such images.
        """
        exit_layers = backbone.exit_layers
        if exits is not None:
            exit_layers = _checked_exits(backbone, exits)
        backbone.check_images(images)
        batch_size = len(images)
        x = backbone.prepare(images)  # (N, C, H, W)
        no_logits = backbone.image_mean.new_zeros(batch_size, backbone.num_classes)

        # The glance is layer 0's exit, so it runs only where that exit is on; then the stem waits.
        if backbone.glance is not None and 0 in exit_layers:
            glance_pooled, glance_logits = backbone.glance(x)  # (N, G), (N, classes)
            features = x
            macs = 0
        else:
            glance_pooled = backbone.image_mean.new_zeros(batch_size, len(backbone.glance_mean))
            glance_logits = no_logits
            features = backbone.stem(x)
            macs = backbone.mac_table.stem

        start = cls(
            backbone=backbone,
            exit_layers=exit_layers,
            grad=torch.is_grad_enabled(),
            groups=(),
            layer=np.zeros(batch_size, np.int64),
            prev_sub_path=np.full(batch_size, backbone.full_path),
            macs=np.full(batch_size, macs),
            path=np.full((batch_size, backbone.num_layers), -1, np.int8),
            logits=no_logits,
            exit_logits=glance_logits,  # layer 0's exit *is* the glance
            glance_pooled=glance_pooled,
            glance_logits=glance_logits,
        )
        prev_sub_path = backbone.full_path if backbone.reads_prev_sub_path else None
        return start._arrive([Group(0, prev_sub_path, np.arange(batch_size), features)])

    @property
    def stem_waits(self) -> bool:
        """Whether the stem runs only for images that continue past the glance."""
        return 0 in self.exit_layers

    @property
    def done(self) -> NDArray[np.bool_]:
        """bool `(N,)`: which images have been answered."""
        return self.layer == self.backbone.num_layers

    def step(self, sub_paths: Indices) -> Traversal:
        """Move every unanswered image by its own sub-path `(N,)`; other entries are ignored.

        Raises:
            ValueError: a sub-path is not valid at its layer, or is an exit that is off.
        """
        sub_paths = checks.whole_numbers("sub_paths", sub_paths, (len(self.layer),))
        active = np.flatnonzero(~self.done)
        layer = self.layer[active]
        chosen = sub_paths[active]
        self._check(layer, chosen)
        exiting = active[self._exits(chosen)]

        # States are immutable, so what changes is copied.
        macs = self.macs.copy()
        macs[active] += self.backbone.mac_table.layers[layer, self.prev_sub_path[active], chosen]
        if self.stem_waits:
            starting = active[(layer == 0) & ~self._exits(chosen)]
            macs[starting] += self.backbone.mac_table.stem

        path = self.path.copy()
        path[active, layer] = chosen
        prev_sub_path = self.prev_sub_path.copy()
        prev_sub_path[active] = chosen
        next_layer = self.layer.copy()
        next_layer[active] = layer + 1

        with self._grad_mode():
            logits = self.logits
            # The exit head has run on arrival; its answer becomes final.
            if len(exiting):
                next_layer[exiting] = self.backbone.num_layers
                logits = _placed(logits, exiting, self.exit_logits[exiting])

            moved = replace(
                self,
                layer=next_layer,
                prev_sub_path=prev_sub_path,
                macs=macs,
                path=path,
                logits=logits,
            )
            return moved._arrive(_merged(self._run_layers(sub_paths)))

    def replaced(self, batch_idx: Indices, other: Traversal) -> Traversal:
        """This batch with `other`'s images, in order, at the positions `batch_idx`."""
        with self._grad_mode():
            kept = [_without(group, batch_idx) for group in self.groups]
            kept = [group for group in kept if len(group.batch_idx)]
            new = [group._replace(batch_idx=batch_idx[group.batch_idx]) for group in other.groups]
            return replace(
                self,
                groups=tuple(_merged(kept + new)),
                layer=_put(self.layer, batch_idx, other.layer),
                prev_sub_path=_put(self.prev_sub_path, batch_idx, other.prev_sub_path),
                macs=_put(self.macs, batch_idx, other.macs),
                path=_put(self.path, batch_idx, other.path),
                logits=_placed(self.logits, batch_idx, other.logits),
                exit_logits=_placed(self.exit_logits, batch_idx, other.exit_logits),
                glance_pooled=_placed(self.glance_pooled, batch_idx, other.glance_pooled),
                glance_logits=_placed(self.glance_logits, batch_idx, other.glance_logits),
            )

    @torch.no_grad()
    def summary(self, features: bool = True) -> NDArray[np.float32]:
        """float32 `(N, S)`: what the network knows of each image, see `SummaryLayout`.

        Without `features`, pooled features are zeros.
        """
        backbone = self.backbone
        parts = [self._pooled(features)]
        if not backbone.summary_groups:
            parts.append(self._glance_z_scores(features))
            parts.append(self.glance_logits.float().softmax(1))

        probabilities = self.exit_logits.float().softmax(1)
        parts.append(probabilities)
        parts.append(confidence_features(probabilities))

        summary: NDArray[np.float32] = torch.cat(parts, 1).float().cpu().numpy()  # (N, S)
        # The logits of answered images are still there, but their summary is zero by contract.
        summary[self.done] = 0.0
        if backbone.summary_groups:
            return quantised(summary, backbone.pooled_width)
        return summary

    def _pooled(self, features: bool) -> Tensor:
        """Z-scored pooled features `(N, pooled_width)`; zeros before the stem has run."""
        backbone = self.backbone
        z_scores = backbone.summary_mean.new_zeros(len(self.layer), backbone.pooled_width)
        if not features:
            return z_scores
        for group in self.groups:
            if group.layer == 0 and self.stem_waits:
                continue

            # Features may be narrower than the widest layer's; the rest stays zero.
            pooled = group.pooled
            if pooled is None:
                pooled = pooled_channels(group.features)
            pooled = pooled_z_scores(backbone, pooled, group.layer)
            batch_idx = torch.from_numpy(group.batch_idx)
            z_scores[batch_idx, : pooled.shape[1]] = pooled
        return z_scores

    def _glance_z_scores(self, features: bool) -> Tensor:
        """The glance's pooled features `(N, G)`, z-scored; zeros where it did not run."""
        if not features or 0 not in self.exit_layers:
            return self.glance_pooled.new_zeros(self.glance_pooled.shape, dtype=torch.float32)
        return glance_z_scores(self.backbone, self.glance_pooled)

    def _grad_mode(self) -> AbstractContextManager[Any]:
        if self.grad:
            return nullcontext()
        return torch.inference_mode()

    def _check(self, layer: Indices, chosen: Indices) -> None:
        """Raise `ValueError` unless every chosen sub-path can be taken at its layer."""
        known = (chosen >= 0) & (chosen < self.backbone.num_paths)
        if not known.all() or not self.backbone.valid[layer, chosen].all():
            raise ValueError(
                f"`sub_paths` must be valid at their layers {layer.tolist()}, got {chosen.tolist()}"
            )

        exit_at = layer[self._exits(chosen)].tolist()
        if not set(exit_at) <= self.exit_layers:
            raise ValueError(
                f"`sub_paths` may exit at layers {sorted(self.exit_layers)} only, got an exit "
                f"at {exit_at}"
            )

    def _exits(self, sub_paths: Indices) -> NDArray[np.bool_]:
        """Which sub-paths are exits: those numbered 0, in a backbone that has exits."""
        return sub_paths < self.backbone.first_sub_path

    def _run_layers(self, sub_paths: Indices) -> list[Group]:
        """Run each group's layer, once per sub-path that is taken there."""
        backbone = self.backbone
        moved = []
        for group in self.groups:
            # Of the features that are left behind.
            group = group._replace(pooled=None)
            if group.layer == 0 and self.stem_waits:
                group = self._run_stem(group, sub_paths)

            chosen = sub_paths[group.batch_idx]
            layer = backbone.layers[group.layer]
            for sub_path in np.unique(chosen[chosen >= backbone.first_sub_path]).tolist():
                part = _picked(group, chosen == sub_path)
                features = layer(part.features, sub_path, group.prev_sub_path)
                prev_sub_path = sub_path if backbone.reads_prev_sub_path else None
                moved.append(Group(group.layer + 1, prev_sub_path, part.batch_idx, features))
        return moved

    def _run_stem(self, group: Group, sub_paths: Indices) -> Group:
        """The images of a group that do not leave at the glance, with the stem's features."""
        staying = _picked(group, ~self._exits(sub_paths[group.batch_idx]))
        if len(staying.batch_idx) == 0:
            return staying
        return staying._replace(features=self.backbone.stem(staying.features))

    def _arrive(self, groups: list[Group]) -> Traversal:
        """Run and charge exit heads, and the network's head for groups past the last layer."""
        backbone = self.backbone
        table = backbone.mac_table
        macs = self.macs.copy()
        logits = self.logits
        exit_logits = self.exit_logits
        waiting = []
        for group in groups:
            batch_idx = group.batch_idx
            prev_sub_path = self.prev_sub_path[batch_idx]
            if group.layer == backbone.num_layers:
                macs[batch_idx] += table.head[prev_sub_path]
                logits = _placed(logits, batch_idx, backbone.head(group.features))
                continue

            if group.layer in self.exit_layers:
                macs[batch_idx] += table.exits[group.layer, prev_sub_path]
            # Layer 0's exit, the glance, has run at the start.
            if group.layer in self.exit_layers and group.layer > 0:
                layer = backbone.layers[group.layer]
                # The summary needs the same mean.
                pooled = pooled_channels(group.features)
                group = group._replace(pooled=pooled)
                answer = layer.exit(pooled, self._glance_context(batch_idx))
                exit_logits = _placed(exit_logits, batch_idx, answer)
            waiting.append(group)

        return replace(
            self,
            groups=tuple(waiting),
            macs=macs,
            logits=logits,
            exit_logits=exit_logits,
        )

    def _glance_context(self, batch_idx: Indices) -> Tensor | None:
        """What exit heads read of the glance, without gradients; None where they do not read it.

        Pooled features and class probabilities, `(n, G + classes)`.
        """
        if not self.backbone.exits_read_glance:
            return None
        idx = torch.from_numpy(batch_idx).to(self.glance_logits.device)
        pooled = self.glance_pooled.detach().index_select(0, idx)
        logits = self.glance_logits.detach().index_select(0, idx)
        return torch.cat([pooled, logits.softmax(1)], 1)


def pooled_z_scores(backbone: Backbone, pooled: Tensor, layer: int) -> Tensor:
    """Pooled features `(N, C)` that arrive at a layer, z-scored and clipped to +-`CLIP`."""
    pooled = backbone.condense(pooled.float())  # (N, C) with C <= pooled_width
    width = pooled.shape[1]
    mean = backbone.summary_mean[layer, :width]
    std = backbone.summary_std[layer, :width]
    return ((pooled - mean) / std).clamp(-CLIP, CLIP)


def glance_z_scores(backbone: Backbone, pooled: Tensor) -> Tensor:
    """The glance's pooled features `(N, G)`, z-scored and clipped to +-`CLIP`."""
    return ((pooled.float() - backbone.glance_mean) / backbone.glance_std).clamp(-CLIP, CLIP)


def _checked_exits(backbone: Backbone, exits: Collection[int]) -> frozenset[int]:
    """The exits as a set; raises `ValueError` unless they can be on together."""
    known = sorted(backbone.exit_layers)
    if not isinstance(exits, Collection) or any(layer not in known for layer in exits):
        raise ValueError(f"`exits` must be among {known}, got {exits!r}")
    exit_layers = frozenset(exits)
    if backbone.exits_read_glance and exit_layers and 0 not in exit_layers:
        raise ValueError(
            "`exits` must include 0, the glance, which this backbone's exit heads read, got "
            f"{sorted(exit_layers)}"
        )
    return exit_layers


def _picked(group: Group, mask: NDArray[np.bool_]) -> Group:
    """The images of a group that a mask picks; the group itself, uncopied, where it picks all."""
    if mask.all():
        return group
    row_idx = np.flatnonzero(mask)
    pooled = group.pooled
    if pooled is not None:
        pooled = _rows(pooled, row_idx)
    return group._replace(
        batch_idx=group.batch_idx[mask],
        features=_rows(group.features, row_idx),
        pooled=pooled,
    )


def _rows(features: Tensor, row_idx: Indices) -> Tensor:
    """Some rows of `(n, C, H, W)` or `(n, C)`, in the memory format in which they are."""
    idx = torch.from_numpy(row_idx).to(features.device)
    # `index_select` writes channels first, and convolutions would turn the maps round again.
    if features.ndim == 4 and features.is_contiguous(memory_format=torch.channels_last):
        return features.permute(0, 2, 3, 1).index_select(0, idx).permute(0, 3, 1, 2)
    return features.index_select(0, idx)


def _without(group: Group, batch_idx: Indices) -> Group:
    """A group without the images at some positions of the batch."""
    return _picked(group, ~np.isin(group.batch_idx, batch_idx))


def _merged(groups: list[Group]) -> list[Group]:
    """Groups at the same layer with the same previous sub-path become one."""
    # Fewer and larger batches run faster.
    alike: dict[tuple[int, int | None], list[Group]] = {}
    for group in groups:
        alike.setdefault((group.layer, group.prev_sub_path), []).append(group)
    return [_joined(parts) for parts in alike.values()]


def _joined(parts: list[Group]) -> Group:
    """One group of several that are alike."""
    if len(parts) == 1:
        return parts[0]
    batch_idx = np.concatenate([part.batch_idx for part in parts])
    features = torch.cat([part.features for part in parts])
    pooled = None
    known = [part.pooled for part in parts if part.pooled is not None]
    if len(known) == len(parts):
        pooled = torch.cat(known)
    return parts[0]._replace(batch_idx=batch_idx, features=features, pooled=pooled)


def _placed(base: Tensor, batch_idx: Indices, values: Tensor) -> Tensor:
    """`base` with `values` at some positions; a new tensor through which gradients pass."""
    # Mostly the whole batch is one group in order, and nothing needs copying.
    if len(batch_idx) == len(base) and np.array_equal(batch_idx, np.arange(len(base))):
        return values
    idx = torch.from_numpy(batch_idx).to(base.device)
    return base.index_copy(0, idx, values.to(base.dtype))


def _put(base: NDArray, batch_idx: Indices, values: NDArray) -> NDArray:
    """A copy of `base` with `values` at some positions."""
    result = base.copy()
    result[batch_idx] = values
    return result
