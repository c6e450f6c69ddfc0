"""A batch of images on its way through a backbone: the one place where a backbone runs layer by layer."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rnr_gym.backbones.base import Backbone
from rnr_gym.routing.observations import CLIP, confidence, quantised

Rows = NDArray[np.int64]


class Group(NamedTuple):
    """Images that wait at one layer with features of one shape.

    Where the glance answers for layer 0, the stem has not run there yet: the features are the
    prepared images.
    """

    layer: int
    prev_sub_path: int | None
    rows: Rows  # (n,) places in the batch
    features: Tensor  # (n, C, H, W)


@dataclass(frozen=True, eq=False)
class Traversal:
    """N images under way. Immutable: `step` returns the next one, and gradients pass through it.

    Make one with `Traversal.start`. On arrival at a layer its exit head has run and been charged, if `exits` names it.
    The stem runs with layer 0's sub-path where the glance is on, so that an answer at the glance does not pay for it;
    otherwise at once.

    Attributes:
        backbone: the network.
        exits: layers whose exit head runs on arrival; 0 stands for the glance.
        groups: the feature maps under way.
        layer: int64 `(N,)`, the decision an image waits for; T once it has been answered.
        prev_sub_path: int64 `(N,)`, the sub-path executed last; K - 1 at layer 0.
        macs: int64 `(N,)`, charged so far.
        path: int8 `(N, T)`, executed sub-paths, -1 where none was.
        logits: float `(N, classes)`, the answers; zero until answered.
        exit_logits: float `(N, classes)`, of the exit head that ran last; zero before the first.
        glance_pooled, glance_logits: float `(N, G)` and `(N, classes)`; zero where no glance ran.
    """

    backbone: Backbone
    exits: frozenset[int]
    groups: tuple[Group, ...]
    layer: Rows
    prev_sub_path: Rows
    macs: Rows
    path: NDArray[np.int8]
    logits: Tensor
    exit_logits: Tensor
    glance_pooled: Tensor
    glance_logits: Tensor

    @classmethod
    def start(cls, backbone: Backbone, images: Tensor, exits: Collection[int] | None = None) -> Traversal:
        """Run the glance, or without it the stem, on images `(N, C, H, W)`, uint8 or float 0..1, on the backbone's device.

        Args:
            backbone: the network.
            images: the batch.
            exits: layers whose exits are run and charged; None for all that the backbone has, `()` for none.
        """
        on = backbone.exit_layers if exits is None else frozenset(exits)
        if not on <= backbone.exit_layers:
            raise ValueError(f"`exits` must be among {sorted(backbone.exit_layers)}, got {sorted(on)}")
        if backbone.exits_read_glance and on and 0 not in on:
            raise ValueError(f"`exits` must include 0, the glance, which this backbone's exit heads read, got {sorted(on)}")
        x = backbone.prepare(images)
        count = len(images)
        blank = x.new_zeros(count, backbone.num_classes)
        if backbone.glance is not None and 0 in on:
            pooled, glanced = backbone.glance(x)
            features, spent = x, 0
        else:
            pooled, glanced = x.new_zeros(count, len(backbone.glance_mean)), blank
            features, spent = backbone.stem(x), backbone.mac_table.stem

        start = cls(
            backbone=backbone,
            exits=on,
            groups=(),
            layer=np.zeros(count, np.int64),
            prev_sub_path=np.full(count, backbone.full_path),
            macs=np.full(count, spent),
            path=np.full((count, backbone.num_layers), -1, np.int8),
            logits=blank,
            exit_logits=glanced,
            glance_pooled=pooled,
            glance_logits=glanced,
        )
        prev_sub_path = backbone.full_path if backbone.reads_prev_sub_path else None
        return start._arrive([Group(0, prev_sub_path, np.arange(count), features)])

    @property
    def stem_waits(self) -> bool:
        """Whether the stem runs only for images that continue past the glance."""
        return 0 in self.exits

    @property
    def done(self) -> NDArray[np.bool_]:
        """bool `(N,)`: which images have been answered."""
        return self.layer == self.backbone.num_layers

    def step(self, sub_paths: Rows) -> Traversal:
        """Move every unanswered image by its own sub-path `(N,)`; entries of answered ones are ignored."""
        going = np.flatnonzero(~self.done)
        self._check(sub_paths, going)
        layer, chosen = self.layer[going], sub_paths[going]
        macs, path, next_layer, prev_sub_path = self.macs.copy(), self.path.copy(), self.layer.copy(), self.prev_sub_path.copy()
        macs[going] += self.backbone.mac_table.layers[layer, prev_sub_path[going], chosen]
        if self.stem_waits:
            macs[going[(layer == 0) & (chosen > 0)]] += self.backbone.mac_table.stem
        path[going, layer] = chosen
        exiting = going[chosen == 0] if self.backbone.has_exits else going[:0]
        next_layer[going], prev_sub_path[going] = layer + 1, chosen
        next_layer[exiting] = self.backbone.num_layers
        logits = _placed(self.logits, exiting, self.exit_logits[exiting]) if len(exiting) else self.logits
        moved = replace(self, layer=next_layer, prev_sub_path=prev_sub_path, macs=macs, path=path, logits=logits)
        return moved._arrive(_merged(self._moved(sub_paths)))

    def replaced(self, rows: Rows, other: Traversal) -> Traversal:
        """This batch with `other`'s images, in order, in the places `rows`."""
        kept = [group for group in (_without(group, rows) for group in self.groups) if len(group.rows)]
        incoming = [group._replace(rows=rows[group.rows]) for group in other.groups]
        state: dict[str, Any] = {name: _put(getattr(self, name), rows, getattr(other, name)) for name in ("layer", "prev_sub_path", "macs", "path")}
        answers: dict[str, Any] = {
            name: _placed(getattr(self, name), rows, getattr(other, name)) for name in ("logits", "exit_logits", "glance_pooled", "glance_logits")
        }
        return replace(self, groups=tuple(_merged(kept + incoming)), **state, **answers)

    def summary(self) -> NDArray[np.float32]:
        """float32 `(N, S)`: what the network knows of each image; its parts stand in `summaries.SummaryLayout`."""
        backbone = self.backbone
        pooled = backbone.summary_mean.new_zeros(len(self.layer), backbone.pooled_width)
        with torch.no_grad():
            for group in self.groups:
                if group.layer == 0 and self.stem_waits:
                    continue
                found = backbone.pool(group.features)
                mean, std = (part[group.layer, : found.shape[1]] for part in (backbone.summary_mean, backbone.summary_std))
                pooled[torch.from_numpy(group.rows), : found.shape[1]] = ((found - mean) / std).clamp(-CLIP, CLIP)
            answer = self.exit_logits.float().softmax(1)
            glanced = [] if backbone.summary_groups else [self._glanced(), self.glance_logits.float().softmax(1)]
            summary: NDArray[np.float32] = torch.cat([pooled, *glanced, answer, confidence(answer)], 1).float().cpu().numpy()
        summary[self.done] = 0.0
        return quantised(summary, backbone.pooled_width) if backbone.summary_groups else summary

    def _glanced(self) -> Tensor:
        """The glance's pooled features `(N, G)`, z-scored; zeros where it did not run."""
        backbone = self.backbone
        if 0 not in self.exits:
            return self.glance_pooled.float()
        return ((self.glance_pooled.float() - backbone.glance_mean) / backbone.glance_std).clamp(-CLIP, CLIP)

    def _check(self, sub_paths: Rows, going: Rows) -> None:
        chosen, layer = sub_paths[going], self.layer[going]
        known = (chosen >= 0) & (chosen < self.backbone.num_paths)
        if not known.all() or not self.backbone.valid[layer, chosen].all():
            raise ValueError(f"`sub_paths` must be valid at their layers {layer.tolist()}, got {chosen.tolist()}")
        if self.backbone.has_exits and not set(layer[chosen == 0].tolist()) <= self.exits:
            raise ValueError(f"`sub_paths` may exit at layers {sorted(self.exits)} only, got an exit at {layer[chosen == 0].tolist()}")

    def _moved(self, sub_paths: Rows) -> list[Group]:
        first, moved = int(self.backbone.has_exits), []
        for group in self.groups:
            if group.layer == 0 and self.stem_waits:
                group = self._past_stem(group, sub_paths)
            chosen = sub_paths[group.rows]
            for sub_path in np.unique(chosen[chosen >= first]).tolist():
                part = _chosen(group, chosen == sub_path)
                features = self.backbone.layers[group.layer](part.features, sub_path, group.prev_sub_path)
                prev_sub_path = sub_path if self.backbone.reads_prev_sub_path else None
                moved.append(Group(group.layer + 1, prev_sub_path, part.rows, features))
        return moved

    def _past_stem(self, group: Group, sub_paths: Rows) -> Group:
        """The images of a group that do not leave at the glance, with the stem's features."""
        staying = _chosen(group, sub_paths[group.rows] > 0)
        if len(staying.rows) == 0:
            return staying
        return staying._replace(features=self.backbone.stem(staying.features))

    def _arrive(self, groups: list[Group]) -> Traversal:
        """Run and charge exit heads, and the network's head for those who have passed every layer."""
        backbone, table = self.backbone, self.backbone.mac_table
        macs, logits, exit_logits, waiting = self.macs.copy(), self.logits, self.exit_logits, []
        for group in groups:
            rows = group.rows
            if group.layer == backbone.num_layers:
                macs[rows] += table.head[self.prev_sub_path[rows]]
                logits = _placed(logits, rows, backbone.head(group.features))
                continue
            waiting.append(group)
            if group.layer in self.exits:
                macs[rows] += table.exits[group.layer, self.prev_sub_path[rows]]
                if group.layer:
                    answer = backbone.layers[group.layer].exit(group.features, self._context(rows))
                    exit_logits = _placed(exit_logits, rows, answer)
        return replace(self, groups=tuple(waiting), macs=macs, logits=logits, exit_logits=exit_logits)

    def _context(self, rows: Rows) -> Tensor | None:
        """What exit heads read of the glance: pooled features and class probabilities `(n, G + classes)`, without gradients."""
        if not self.backbone.exits_read_glance:
            return None
        places = torch.from_numpy(rows).to(self.glance_logits.device)
        pooled = self.glance_pooled.detach().index_select(0, places)
        logits = self.glance_logits.detach().index_select(0, places)
        return torch.cat([pooled, logits.softmax(1)], 1)


def _chosen(group: Group, mask: NDArray[np.bool_]) -> Group:
    """The images of a group that a mask picks; the group itself, nothing moved, where it picks all."""
    if mask.all():
        return group
    places = torch.from_numpy(np.flatnonzero(mask)).to(group.features.device)
    return group._replace(rows=group.rows[mask], features=group.features.index_select(0, places))


def _without(group: Group, rows: Rows) -> Group:
    return _chosen(group, ~np.isin(group.rows, rows))


def _merged(groups: list[Group]) -> list[Group]:
    """Groups at the same layer with the same `prev_sub_path` become one."""
    together: dict[tuple[int, int | None], list[Group]] = {}
    for group in groups:
        together.setdefault((group.layer, group.prev_sub_path), []).append(group)
    return [parts[0] if len(parts) == 1 else _joined(parts) for parts in together.values()]


def _joined(parts: list[Group]) -> Group:
    rows, features = np.concatenate([part.rows for part in parts]), torch.cat([part.features for part in parts])
    return parts[0]._replace(rows=rows, features=features)


def _placed(base: Tensor, rows: Rows, values: Tensor) -> Tensor:
    """`base` with `values` in the places `rows`, as a new tensor through which gradients pass."""
    if len(rows) == len(base) and np.array_equal(rows, np.arange(len(base))):
        return values
    return base.index_copy(0, torch.from_numpy(rows).to(base.device), values.to(base.dtype))


def _put(base: NDArray, rows: Rows, values: NDArray) -> NDArray:
    result = base.copy()
    result[rows] = values
    return result
