"""A check of networks that others write, as Gymnasium's `check_env` is one of environments."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from rnr_gym.backbones.base import Backbone
from rnr_gym.routing.rollout import follow
from rnr_gym.routing.spec import RoutingSpec
from rnr_gym.routing.traversal import Traversal

RTOL = 1e-3
ATOL = 1e-4
"""With other batches and formats, sums are taken in another order."""
RANDOM_PATHS = 4


@torch.no_grad()
def check_backbone(backbone: Backbone, images: Tensor | None = None, seed: int = 0) -> None:
    """Check that a network keeps the contract of `Backbone`; returns nothing if it does.

    >>> rnr_gym.testing.check_backbone(backbone)

    It is in evaluation mode and finite; its sub-paths ascend in cost; the full path equals the
    plain network; MACs are those that torch counts on what ran; no image's result depends on the
    other images of its batch; features and summaries have the shapes that are declared; and
    running it changes neither its state nor the features that it reads.

    Args:
        backbone: the network.
        images: uint8 or float 0..1 `(N, C, H, W)`, N at least 2; None for random ones.
        seed: of random images and paths.

    Raises:
        ValueError: `backbone` or `images` is something else.
        AssertionError: the contract is broken; the message says how, and at which layer.
    """
    if not isinstance(backbone, Backbone):
        raise ValueError(f"`backbone` must be a `Backbone`, got {type(backbone).__name__}")
    generator = torch.Generator().manual_seed(seed)
    if images is None:
        size = (3, *backbone.image_shape)
        images = torch.randint(0, 256, size, generator=generator, dtype=torch.uint8)
    images = images.to(backbone.device)
    backbone.check_images(images)
    if len(images) < 2:
        raise ValueError(f"`images` must be at least 2, got {len(images)}")

    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    _check_parts(backbone)
    spec = RoutingSpec.of(backbone)
    _check_costs(spec)
    _check_layers(backbone, images)
    _check_plain(backbone, images)

    paths = _paths(spec, np.random.default_rng(seed))
    for path in paths:
        _check_macs(backbone, spec, images[:1], path)
    _check_batches(backbone, spec, images, paths[-len(images) :])

    for name, tensor in backbone.state_dict().items():
        assert torch.equal(tensor, before[name]), f"`{name}` changes when the network runs"


def _check_parts(backbone: Backbone) -> None:
    """Mode, weights and masks."""
    assert not backbone.training, "`backbone` must be in evaluation mode; call `eval()`"
    for name, tensor in backbone.state_dict().items():
        assert tensor.isfinite().all(), f"`{name}` must be finite, got NaN or infinity"

    num_layers = backbone.num_layers
    num_paths = backbone.num_paths
    assert num_layers == len(backbone.layers), (
        f"`num_layers` must be that of `layers`, {len(backbone.layers)}, got {num_layers}"
    )
    valid = backbone.valid
    assert valid.shape == (num_layers, num_paths), (
        f"`valid` must have shape {(num_layers, num_paths)}, got {valid.shape}"
    )
    assert valid.dtype == np.bool_, f"`valid` must be bool, got {valid.dtype}"
    assert backbone.full_path == num_paths - 1, (
        f"`full_path` must be {num_paths - 1}, got {backbone.full_path}"
    )
    for layer in np.flatnonzero(~valid[:, -1]):
        raise AssertionError(f"{_named(backbone, layer)} must offer the full path")


def _check_costs(spec: RoutingSpec) -> None:
    """Shapes of the MAC table, and sub-paths that ascend in cost."""
    table = spec.mac_table
    num_layers, num_paths = spec.valid.shape
    shapes = {
        "layers": (num_layers, num_paths, num_paths),
        "exits": (num_layers, num_paths),
        "head": (num_paths,),
    }
    for name, shape in shapes.items():
        entries = getattr(table, name)
        assert entries.shape == shape, (
            f"`mac_table.{name}` must have shape {shape}, got {entries.shape}"
        )
        assert (entries >= 0).all(), f"`mac_table.{name}` must not be negative"
    assert spec.plain_macs > 0, f"the plain network must have MACs, got {spec.plain_macs}"

    for layer in range(num_layers):
        # What a layer may come from; layer 0 from nothing that is narrower than the stem.
        arriving = [spec.full_path]
        if layer > 0:
            arriving = np.flatnonzero(spec.valid[layer - 1]).tolist()
        offered = np.flatnonzero(spec.valid[layer])
        offered = offered[offered >= spec.first_sub_path]
        for prev_sub_path in arriving:
            costs = table.layers[layer, prev_sub_path, offered]
            is_exit = prev_sub_path < spec.first_sub_path
            assert is_exit or (np.diff(costs) > 0).all(), (
                f"sub-paths of layer {layer} must ascend in MACs, got {costs.tolist()} for "
                f"{offered.tolist()}"
            )


def _check_plain(backbone: Backbone, images: Tensor) -> None:
    full_path = np.full(backbone.num_layers, backbone.full_path)
    logits = follow(Traversal.start(backbone, images, ()), full_path).logits
    expected = (len(images), backbone.num_classes)
    assert tuple(logits.shape) == expected, (
        f"`head` must return logits {expected}, got {tuple(logits.shape)}"
    )
    assert logits.isfinite().all(), "logits of the full path must be finite"
    plain = backbone.plain()(backbone.prepare(images))
    _check_close("the full path must equal `plain()`", logits, plain)


def _check_layers(backbone: Backbone, images: Tensor) -> None:
    """Each sub-path by itself, on features of the full path."""
    features = backbone.stem(backbone.prepare(images))
    prev_sub_path = backbone.full_path if backbone.reads_prev_sub_path else None
    for layer_idx, layer in enumerate(backbone.layers):
        name = _named(backbone, layer_idx)
        _check_features(
            features, backbone.in_width(layer_idx, backbone.full_path), f"before {name}"
        )
        read = features.clone()
        outputs = {}
        for sub_path in _continuing(backbone, layer_idx):
            outputs[sub_path] = layer(features, sub_path, prev_sub_path).clone()
            assert torch.equal(features, read), (
                f"sub-path {sub_path} of {name} must not change the features that it reads"
            )
            width = layer.widths[sub_path]
            _check_features(outputs[sub_path], width, f"after sub-path {sub_path} of {name}")
            again = layer(features, sub_path, prev_sub_path)
            assert torch.equal(again, outputs[sub_path]), (
                f"sub-path {sub_path} of {name} must give the same features each time"
            )
        features = outputs[backbone.full_path]


def _check_features(features: Tensor, width: int, where: str) -> None:
    assert features.ndim == 4, f"features {where} must be (N, C, H, W), got {tuple(features.shape)}"
    assert features.shape[1] == width, (
        f"features {where} must have {width} channels, got {features.shape[1]}"
    )
    assert features.isfinite().all(), f"features {where} must be finite"


def _check_macs(
    backbone: Backbone, spec: RoutingSpec, image: Tensor, path: NDArray[np.int64]
) -> None:
    """What one image is charged on a path, against torch's counter, step by step."""
    with FlopCounterMode(display=False) as counter:
        state = Traversal.start(backbone, image)
    total = 0
    where = "the start"
    for layer in range(backbone.num_layers + 1):
        # torch counts a multiply and an add as two.
        total += counter.get_total_flops() // 2
        assert state.macs.tolist() == [total], (
            f"MACs on path {path.tolist()} must be {total} after {where}, as torch counts them, "
            f"got {state.macs[0]}"
        )
        if state.done.all():
            break
        summary = state.summary()
        assert summary.shape == (1, spec.layout.summary.size), (
            f"summaries after {where} must have {spec.layout.summary.size} values, got "
            f"{summary.shape}"
        )
        assert np.isfinite(summary).all(), f"summaries after {where} must be finite"
        with FlopCounterMode(display=False) as counter:
            state = state.step(path[layer : layer + 1])
        where = _named(backbone, layer)


def _check_batches(
    backbone: Backbone, spec: RoutingSpec, images: Tensor, paths: list[NDArray[np.int64]]
) -> None:
    """Images on different paths together, and each alone."""
    together = np.stack([paths[number % len(paths)] for number in range(len(images))])
    state = Traversal.start(backbone, images)
    alone = [Traversal.start(backbone, image[None]) for image in images]
    for layer in range(backbone.num_layers):
        state = state.step(together[:, layer])
        for number, path in enumerate(together):
            alone[number] = alone[number].step(path[layer : layer + 1])
        name = _named(backbone, layer)

        rule = f"after {name} must not depend on the other images of a batch"
        logits = torch.cat([one.logits for one in alone])
        _check_close(f"logits {rule}", state.logits, logits)
        summaries = np.concatenate([one.summary() for one in alone])
        _check_close(
            f"summaries {rule}",
            torch.from_numpy(state.summary()),
            torch.from_numpy(summaries),
            # Rounding may lead to the next step.
            atol=0.1 if spec.quantised else ATOL,
        )
        macs = [int(one.macs[0]) for one in alone]
        assert state.macs.tolist() == macs, f"MACs {rule}, got {state.macs.tolist()} and {macs}"


def _check_close(rule: str, actual: Tensor, expected: Tensor, atol: float = ATOL) -> None:
    assert_close(actual, expected, rtol=RTOL, atol=atol, msg=lambda text: f"{rule}: {text}")


def _paths(spec: RoutingSpec, rng: np.random.Generator) -> list[NDArray[np.int64]]:
    """Each sub-path everywhere, where it is offered, and some random paths."""
    paths = []
    for sub_path in range(spec.num_paths):
        wanted = np.full(spec.num_layers, sub_path)
        paths.append(spec.nearest[np.arange(spec.num_layers), wanted])
    for _ in range(RANDOM_PATHS):
        wanted = rng.integers(spec.first_sub_path, spec.num_paths, spec.num_layers)
        paths.append(spec.nearest[np.arange(spec.num_layers), wanted])
    return paths


def _continuing(backbone: Backbone, layer: int) -> list[int]:
    """The sub-paths of a layer that are no exit."""
    offered = np.flatnonzero(backbone.valid[layer])
    return offered[offered >= backbone.first_sub_path].tolist()


def _named(backbone: Backbone, layer: int | np.integer) -> str:
    """A layer by its number and, in a network that was not written for routing, its module."""
    report = getattr(backbone, "report", None)
    if report is None:
        return f"layer {layer}"
    return f"layer {layer} (`{report.layers[layer].name}`)"
