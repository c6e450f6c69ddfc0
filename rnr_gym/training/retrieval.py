"""Turning a network that classifies, or embeds, into one that retrieves."""

from __future__ import annotations

import copy
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from rnr_gym import checks
from rnr_gym.backbones import zoo
from rnr_gym.backbones.base import Backbone
from rnr_gym.backbones.blocks import PooledHead, pooled_channels
from rnr_gym.backbones.gallery import LOWEST, RetrievalHead, add_gallery, gallery_of
from rnr_gym.data import ImageSet
from rnr_gym.training.calibration import as_image_set, batches, paths_near_full
from rnr_gym.training.random_paths import fixed_path

RIDGE = 1e-2
"""Penalty on squared weights of exit heads, for z-scored features and embeddings of length 1."""
TEMPERATURES = np.geomspace(0.01, 1.0, 41).tolist()
"""Among which that of the gallery is chosen."""
LEAST_LOSS = 0.01
"""In nats: the loss scale of a network that makes hardly a mistake in its gallery is no larger than
the reciprocal of this."""


class Visit(NamedTuple):
    """What N images leave behind on a path, without exits.

    Attributes:
        arriving: float32 `(N, C)` for each layer, the mean of every channel that arrives.
        final: float32 `(N, F)`, what the embedding is made of: such means behind the last layer, or
            what the head of an off-the-shelf network returns.
        glance: float32 `(N, G)`, the glance's pooled features; G is 0 without one.
    """

    arriving: list[Tensor]
    final: Tensor
    glance: Tensor

    @classmethod
    def joined(cls, parts: list[Visit]) -> Visit:
        """The images of several batches, in order."""
        return cls(
            arriving=[
                torch.cat(layer) for layer in zip(*(part.arriving for part in parts), strict=True)
            ],
            final=torch.cat([part.final for part in parts]),
            glance=torch.cat([part.glance for part in parts]),
        )


@torch.no_grad()
def for_retrieval(
    backbone: str | Backbone,
    gallery: ImageSet,
    images: Tensor | NDArray[np.uint8] | ImageSet | None = None,
    dimensions: int = 64,
    seed: int = 0,
    batch_size: int = 256,
) -> Backbone:
    """A copy of a backbone that answers with the class of the nearest image of a gallery.

    >>> retrieval = rnr.for_retrieval(backbone, gallery)
    >>> env = gym.make("RNR-v0", backbone=retrieval, dataset=queries)

    The embedding is linear in what the head read: its principal components over the gallery. The
    classes that the backbone was trained on play no part, so those of the gallery may be new to it.
    Exit heads and the glance are fitted to give the same embedding, by ridge regression. The full
    path embeds the gallery once; every head searches all of it, and is charged for that.

    With a gallery of two classes, such as one person and others, it verifies.

    Args:
        backbone: a name, a file that `rnr-gym pretrain` wrote, or a `Backbone`. What an
            off-the-shelf one returns is taken for features: best leave out its classifier before
            `routable`.
        gallery: labelled images, at least one of each class.
        images: to which exit heads are fitted, without labels; None for those of the gallery.
        dimensions: of the embedding.
        seed: of the order of `images`, and of the paths that they take.
        batch_size: images that run at once.

    Raises `ValueError` if the gallery does not fit the backbone or lacks a class, or if there are
    fewer images or features than dimensions.
    """
    if isinstance(backbone, str):
        backbone = zoo.named(backbone)
    _check(backbone, gallery)
    checks.integer("dimensions", dimensions, 1, len(gallery) - 1)
    checks.integer("batch_size", batch_size, 1)
    generator = torch.Generator().manual_seed(checks.seed(seed))
    fitted_to = as_image_set(backbone, gallery if images is None else images)

    network = copy.deepcopy(backbone).eval().requires_grad_(False)
    whole = fixed_path(network, network.full_path)
    visits = [_visit(network, pixels, whole) for pixels, _ in batches(network, gallery, batch_size)]
    features = Visit.joined(visits).final
    if features.shape[1] < dimensions:
        raise ValueError(
            f"`dimensions` must be at most {features.shape[1]}, the features of the backbone, got "
            f"{dimensions}"
        )
    weight, bias = _principal_components(features, dimensions)

    visits = []
    embeddings = []
    for pixels, _ in batches(network, fitted_to, batch_size, generator):
        on_full_path = _visit(network, pixels, whole)
        visits.append(on_full_path)
        # Exit heads are read behind narrow sub-paths as well, and have to say the same there.
        visits.append(_visit(network, pixels, paths_near_full(network, generator)[0]))
        embedding = F.normalize(F.linear(on_full_path.final, weight, bias))
        embeddings += [embedding, embedding]

    # Random weights are drawn, though not kept: the global generator is left as it was.
    with torch.random.fork_rng(devices=[]):
        add_gallery(network, len(gallery), dimensions, len(gallery.classes))
    loss = _fill(network, F.linear(features, weight, bias), gallery)
    network.loss_scale.fill_(1.0 / max(loss, LEAST_LOSS))
    last = network.head[-1] if isinstance(network.head, nn.Sequential) else network.head
    _set_head(last, weight, bias)
    _fit_heads(network, Visit.joined(visits), torch.cat(embeddings))
    return network.eval().requires_grad_(False)


def _check(backbone: Backbone, gallery: ImageSet) -> None:
    """Raise `ValueError` unless the gallery can be one for this backbone."""
    if not isinstance(backbone, Backbone):
        raise ValueError(
            f"`backbone` must be a name, a file or a `Backbone`, got {type(backbone).__name__}"
        )
    if gallery_of(backbone) is not None:
        raise ValueError("`backbone` must not have a gallery yet, got one that retrieves")
    if not isinstance(gallery, ImageSet):
        raise ValueError(f"`gallery` must be an `ImageSet`, got {type(gallery).__name__}")
    shape = gallery.images.shape[1:]
    if shape != backbone.image_shape:
        raise ValueError(
            f"`gallery` must hold images of the backbone's shape {backbone.image_shape}, got "
            f"{shape}"
        )
    if len(gallery.classes) < 2:
        raise ValueError(f"`gallery` must have 2 classes at least, got {len(gallery.classes)}")
    missing = sorted(set(range(len(gallery.classes))) - set(gallery.labels.tolist()))
    if missing:
        names = ", ".join(gallery.classes[label] for label in missing)
        raise ValueError(f"`gallery` must have an image of every class, got none of {names}")


def _visit(network: Backbone, pixels: Tensor, path: list[int]) -> Visit:
    """What a batch leaves behind on a path."""
    prepared = network.prepare(pixels)
    glance = torch.zeros(len(pixels), 0, device=network.device)
    if network.glance is not None:
        glance, _ = network.glance(prepared)

    x = network.stem(prepared)
    prev_sub_path = network.full_path
    arriving = []
    for layer_idx, (layer, sub_path) in enumerate(zip(network.layers, path, strict=True)):
        # Features that are narrower than the widest have zeros in place of the rest.
        arriving.append(_padded(x, network.in_width(layer_idx, network.full_path)))
        x = layer(x, sub_path, prev_sub_path if network.reads_prev_sub_path else None)
        prev_sub_path = sub_path

    if isinstance(network.head, PooledHead):
        final = _padded(x, network.in_width(network.num_layers, network.full_path))
    else:
        final = network.head(x).float()
    return Visit(arriving, final, glance.float())


def _padded(features: Tensor, width: int) -> Tensor:
    pooled = pooled_channels(features)
    return F.pad(pooled, (0, width - pooled.shape[1]))


def _principal_components(features: Tensor, dimensions: int) -> tuple[Tensor, Tensor]:
    """The linear map to them: `(M, F)` -> weight `(D, F)`, bias `(D,)`."""
    mean = features.mean(0)
    _, vectors = torch.linalg.eigh((features - mean).T.double().cov())
    # Eigenvalues ascend.
    weight = vectors[:, -dimensions:].flip(1).T.float()
    # The sign of an eigenvector is arbitrary, and libraries differ in it.
    largest = weight.abs().argmax(1, keepdim=True)
    weight = weight * weight.gather(1, largest).sign()
    return weight, -weight @ mean


def _fill(network: Backbone, embeddings: Tensor, images: ImageSet) -> float:
    """Fill the gallery, and choose its temperature by cross-entropy where each item seeks others.

    Returns that cross-entropy in nats.
    """
    gallery = gallery_of(network)
    assert gallery is not None
    gallery.items.copy_(F.normalize(embeddings))
    gallery.labels.copy_(torch.from_numpy(np.array(images.labels)))

    similarity = F.linear(gallery.items, gallery.items)
    # Neither itself nor another version of the same image.
    is_same = torch.from_numpy(images.original_id[:, None] == images.original_id)
    similarity.masked_fill_(is_same.to(similarity.device), LOWEST)
    scores = gallery.by_class(similarity)
    losses = []
    for temperature in TEMPERATURES:
        losses.append(float(F.cross_entropy(scores / temperature, gallery.labels)))
    best = int(np.argmin(losses))
    gallery.temperature.fill_(TEMPERATURES[best])
    return losses[best]


def _fit_heads(network: Backbone, visit: Visit, embeddings: Tensor) -> None:
    """Make the glance and all exit heads embed `visit` as `embeddings`, `(N, D)`."""
    context = torch.zeros(len(embeddings), 0, device=network.device)
    if network.glance is not None:
        weight, bias = _ridge_regression(visit.glance, embeddings)
        _set_head(network.glance.linear, weight, bias)
        if network.exits_read_glance:
            beliefs = network.glance.linear(visit.glance).softmax(1)
            context = torch.cat([visit.glance, beliefs], 1)

    for layer, arriving in zip(network.layers, visit.arriving, strict=True):
        if layer.head is not None:
            weight, bias = _ridge_regression(torch.cat([arriving, context], 1), embeddings)
            _set_head(layer.head, weight, bias)


def _ridge_regression(features: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Of targets `(N, D)` on features `(N, C)`: weight `(D, C)`, bias `(D,)`."""
    mean = features.mean(0)
    std = features.std(0)
    # A channel that is always the same says nothing.
    scale = torch.where(std > 1e-6, 1.0 / std, 0.0)
    z_scores = ((features - mean) * scale).double()
    centre = targets.mean(0)

    gram = z_scores.T @ z_scores / len(features)
    gram.diagonal().add_(RIDGE)
    moments = z_scores.T @ (targets - centre).double() / len(features)
    weight = torch.linalg.solve(gram, moments).T.float() * scale
    return weight, centre - weight @ mean


def _set_head(head: nn.Module, weight: Tensor, bias: Tensor) -> None:
    """Set what a head embeds by; the last columns of `weight` read the context, if it has one."""
    assert isinstance(head, RetrievalHead)
    channels = head.linear.in_features
    head.linear.weight.copy_(weight[:, :channels])
    head.linear.bias.copy_(bias)
    if head.context is not None:
        head.context.weight.copy_(weight[:, channels:])
