"""A routed classifier as one ONNX file, which runs without this package and without torch."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rnr_gym import checks, storage
from rnr_gym.agents.sb3 import Sb3Router
from rnr_gym.backbones.base import Backbone
from rnr_gym.backbones.blocks import pooled_channels
from rnr_gym.backbones.folding import affine
from rnr_gym.backbones.multipath import Branch
from rnr_gym.backbones.staged import StagedNet
from rnr_gym.classifier import RoutedClassifier
from rnr_gym.routing.observations import confidence_features, quantisation_steps
from rnr_gym.routing.preferences import action_scores
from rnr_gym.routing.traversal import glance_z_scores, pooled_z_scores

EXTRA = ("onnx", "onnxscript")
OUTPUTS = ("logits", "path", "macs")

Glanced = tuple[Tensor, Tensor]
"""The glance's pooled features `(1, G)` and logits `(1, classes)`; zeros where it does not run."""


class State(NamedTuple):
    """An image on its way.

    Attributes:
        x: features `(1, C, H, W)`; the image itself where the stem has not run.
        answer: logits `(1, classes)` of the exit head that ran last.
        answered: bool `(1,)`; nothing runs for the image any more.
        macs: int64 `(1,)`, charged so far, without the router's.
        prev: int64 `(1,)`, the sub-path executed last.
    """

    x: Tensor
    answer: Tensor
    answered: Tensor
    macs: Tensor
    prev: Tensor


def export_onnx(classifier: RoutedClassifier, path: str | Path) -> Path:
    """Write a classifier to an ONNX file, with its decisions as `If` nodes: what is skipped, rests.

    Inputs are `image`, float32 `(1, C, H, W)` from 0 to 1, and `tradeoff`, float32 `()`, λ. Outputs
    are those of `RoutedClassifier`: `logits` float32 `(1, classes)`, `path` int64 `(T,)`, `macs`
    int64 `(1,)`. The export takes up to a minute.

    Args:
        classifier: with a policy of Stable-Baselines3.
        path: the file to write; it ends in `.onnx`.

    Returns:
        The file.

    Raises:
        ValueError: packages are missing (extra `onnx`), the router is another one, or the
            backbone is off the shelf, or its feature maps change their width with the path.
    """
    path = Path(checks.path("path", path))
    if path.suffix != ".onnx":
        raise ValueError(f"`path` must end in .onnx, got {str(path)!r}")
    missing = [package for package in EXTRA if find_spec(package) is None]
    if missing:
        raise ValueError(
            f"an export needs a package that is not installed ({missing[0]}); "
            'pip install "rnr-gym[onnx]"'
        )

    network = RoutedNetwork(classifier).eval()
    image = torch.zeros(1, *classifier.backbone.image_shape)
    tradeoff = torch.tensor(0.1)
    with torch.no_grad():
        program = torch.export.export(network, (image, tradeoff), strict=False)
        with storage.replacing(path) as partial, _quiet():
            torch.onnx.export(
                program,
                (),
                partial,
                dynamo=True,
                external_data=False,
                input_names=["image", "tradeoff"],
                output_names=list(OUTPUTS),
                verbose=False,
            )
    return path


class RoutedNetwork(nn.Module):
    """One image's way through a backbone, with branches that `torch.export` can trace.

    It computes what `Traversal` and `RoutedClassifier` do for a batch of one.

    Args:
        classifier: what is exported.
    """

    layer_macs: Tensor
    exit_macs: Tensor
    head_macs: Tensor
    nearest: Tensor
    layer_rows: Tensor
    prev_rows: Tensor

    def __init__(self, classifier: RoutedClassifier) -> None:
        super().__init__()
        if not isinstance(classifier.router, Sb3Router) or classifier.router.masked:
            raise ValueError(
                "`classifier` must have a router of Stable-Baselines3 that is given no masks, got "
                f"{classifier.agent}"
            )
        if classifier.spec.time_table is not None:
            raise ValueError(
                "`classifier` must have a router that was fitted under MACs, got one that was "
                "fitted under time"
            )
        backbone = classifier.backbone
        if not isinstance(backbone, StagedNet):
            raise ValueError(
                "`classifier` must have a backbone of this package, got one of kind "
                f"{backbone.kind!r}"
            )
        for idx, layer in enumerate(backbone.layers):
            widths = layer.widths[backbone.first_sub_path :]
            if len(set(widths)) > 1:
                raise ValueError(
                    "`classifier` must have a backbone whose feature maps have one width each, got "
                    f"{widths} channels after layer {idx}"
                )
        # A copy, which is changed: branches must return maps of one memory layout, and norms are
        # chosen by a tensor.
        self.backbone = copy.deepcopy(backbone).cpu().to(memory_format=torch.contiguous_format)
        if backbone.reads_prev_sub_path:
            for branch in _branches(self.backbone):
                for name in ("norms1", "norms2"):
                    setattr(branch, name, ChosenNorm(getattr(branch, name)))
        self.policy = copy.deepcopy(classifier.router.policy).cpu()
        self.reads_features = classifier.router.reads_features
        self.spec = classifier.spec
        # Looked up here, since torch would trace how they are computed.
        self.stem_waits = self.spec.stem_waits
        self.exit_layers = self.spec.exit_layers
        self.decision_macs = classifier.decision_macs
        table = self.spec.mac_table
        self.register_buffer("layer_macs", torch.from_numpy(table.layers))  # (T, K, K)
        self.register_buffer("exit_macs", torch.from_numpy(table.exits))  # (T, K)
        self.register_buffer("head_macs", torch.from_numpy(table.head))  # (K,)
        self.register_buffer("nearest", torch.from_numpy(self.spec.nearest))  # (T, K)
        self.register_buffer("layer_rows", torch.eye(self.spec.num_layers))
        self.register_buffer("prev_rows", torch.eye(self.spec.num_paths))

    def forward(self, image: Tensor, tradeoff: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """float `(1, C, H, W)` and `()` -> logits `(1, classes)`, path `(T,)`, MACs `(1,)`."""
        backbone = self.backbone
        spec = self.spec
        state, glance = self._start(image)
        decisions = []
        for layer in range(spec.num_layers):
            chosen = self._chosen(layer, state, glance, tradeoff)
            decisions.append(chosen)
            state = self._advanced(layer, state, chosen)
            if layer + 1 in self.exit_layers:
                state = self._with_exit(layer + 1, state, glance)

        logits = torch.where(state.answered, state.answer, backbone.head(state.x))
        path = torch.cat(decisions)
        macs = state.macs + torch.where(state.answered, 0, self.head_macs[state.prev])
        return logits, path, macs + self.decision_macs * (path >= 0).sum()

    def _start(self, image: Tensor) -> tuple[State, Glanced]:
        """As `Traversal.start`."""
        backbone = self.backbone
        # In the layout of the copied weights, which `rest` has as well.
        x = backbone.prepare(image).contiguous()
        prev = torch.tensor([self.spec.full_path])
        if self.stem_waits:
            assert backbone.glance is not None
            glance = backbone.glance(x)
            macs = self.exit_macs[0][prev]
        else:
            no_features = x.new_zeros(1, len(backbone.glance_mean))
            glance = no_features, x.new_zeros(1, self.spec.num_classes)
            x = backbone.stem(x)
            macs = torch.tensor([self.spec.mac_table.stem])
        return State(x, glance[1], torch.tensor([False]), macs, prev), glance

    def _chosen(self, layer: int, state: State, glance: Glanced, tradeoff: Tensor) -> Tensor:
        """int64 `(1,)`: what the router chooses; -1 if the image has been answered."""
        obs = self._observation(layer, state, glance, tradeoff)
        action = action_scores(self.policy, obs).argmax(1)
        return torch.where(state.answered, -1, self.nearest[layer][action])

    def _advanced(self, layer: int, state: State, chosen: Tensor) -> State:
        """Run one layer, unless the image has been answered or is answered now."""
        spec = self.spec
        first = spec.first_sub_path
        answered = chosen < first
        sub_paths = [self._sub_path(layer, idx, state.prev) for idx in range(first, spec.num_paths)]
        module = self.backbone.layers[layer]
        shape = (1, module.widths[-1], *module.side)

        def rest(x: Tensor) -> Tensor:
            return torch.zeros(shape)

        # Branch 0 is for images that compute nothing.
        number = torch.where(answered, 0, chosen - first + 1)
        macs = self.layer_macs[layer][state.prev, chosen.clamp(min=0)]
        if layer == 0 and self.stem_waits:
            macs = macs + spec.mac_table.stem
        return state._replace(
            x=switch(number, [rest, *sub_paths], state.x),
            answered=answered,
            macs=state.macs + torch.where(answered, 0, macs),
            prev=torch.where(answered, state.prev, chosen),
        )

    def _sub_path(self, layer: int, sub_path: int, prev: Tensor) -> Callable[[Tensor], Tensor]:
        """What a layer computes on one sub-path, after any previous one."""
        backbone = self.backbone
        module = backbone.layers[layer]
        with_stem = layer == 0 and self.stem_waits
        # Nothing precedes layer 0.
        read = prev if layer > 0 and backbone.reads_prev_sub_path else backbone.full_path

        def run(x: Tensor) -> Tensor:
            if with_stem:
                x = backbone.stem(x)
            # A copy, because identity returns its input, which a branch must not.
            features: Tensor = module(x, sub_path, read).clone()
            return features

        return run

    def _with_exit(self, layer: int, state: State, glance: Glanced) -> State:
        """Run and charge an exit head, unless the image has been answered."""
        context = None
        if self.backbone.exits_read_glance:
            context = torch.cat([glance[0], glance[1].softmax(1)], 1)
        head = self.backbone.layers[layer]
        macs = self.exit_macs[layer][state.prev]

        def keep() -> Tensor:
            return state.answer.clone()

        def ask() -> Tensor:
            logits: Tensor = head.exit(state.x, context)
            return logits

        return state._replace(
            answer=torch.cond(state.answered, keep, ask, ()),
            macs=state.macs + torch.where(state.answered, 0, macs),
        )

    def _observation(self, layer: int, state: State, glance: Glanced, tradeoff: Tensor) -> Tensor:
        """float32 `(1, D)`: what the policy sees, see `observations.observe`."""
        backbone = self.backbone
        spec = self.spec
        pooled = state.x.new_zeros(1, 0)
        # At layer 0 the stem may not have run yet. Some routers read no features at all.
        if self.reads_features and (layer > 0 or not self.stem_waits):
            pooled = pooled_z_scores(backbone, pooled_channels(state.x), layer)
        parts = [F.pad(pooled, (0, backbone.pooled_width - pooled.shape[1]))]
        if not backbone.summary_groups:
            glance_read = self.reads_features and self.stem_waits
            parts.append(glance_z_scores(backbone, glance[0]) if glance_read else 0.0 * glance[0])
            parts.append(glance[1].softmax(1))
        probabilities = state.answer.softmax(1)
        summary = torch.cat([*parts, probabilities, confidence_features(probabilities)], 1)
        if backbone.summary_groups:
            step = torch.from_numpy(quantisation_steps(summary.shape[1], backbone.pooled_width))
            summary = torch.round(summary / step) * step

        layers = self.layer_rows[layer : layer + 1]
        compute = (state.macs / spec.plain_macs).float()
        prev = torch.zeros(1, spec.num_paths)
        if layer > 0:
            prev = self.prev_rows[state.prev]
        return torch.cat([summary, layers, compute.reshape(1, 1), prev, tradeoff.reshape(1, 1)], 1)


class ChosenNorm(nn.Module):
    """Batch-norms in evaluation mode of which a tensor chooses one; in the place of their list.

    Args:
        norms: batch-norms over C channels.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, norms: nn.ModuleList) -> None:
        super().__init__()
        scales, shifts = zip(*map(affine, norms), strict=True)
        self.register_buffer("scale", torch.stack(scales).detach())  # (P, C)
        self.register_buffer("shift", torch.stack(shifts).detach())  # (P, C)

    def __getitem__(self, idx: Tensor | int) -> Callable[[Tensor], Tensor]:
        scale = self.scale[idx].reshape(1, -1, 1, 1)
        shift = self.shift[idx].reshape(1, -1, 1, 1)
        return lambda x: x * scale + shift


def _branches(backbone: Backbone) -> list[Branch]:
    return [module for module in backbone.modules() if isinstance(module, Branch)]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without warnings of initializers that cannot be shared."""
    logger = logging.getLogger("onnx_ir")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def switch(number: Tensor, branches: Sequence[Callable[[Tensor], Tensor]], x: Tensor) -> Tensor:
    """`branches[number](x)`; no other branch runs."""
    first, *others = branches
    if not others:
        return first(x)
    return torch.cond(number == 0, first, lambda x: switch(number - 1, others, x), (x,))
