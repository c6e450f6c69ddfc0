"""The backbone of an environment, made to retrieve and written to a file."""

from __future__ import annotations

from pathlib import Path

from rnr_gym import checks, claims, data
from rnr_gym.backbones import weights as weight_files
from rnr_gym.backbones import zoo
from rnr_gym.data.images import rank_in_class
from rnr_gym.registration import registered_kwargs
from rnr_gym.training.calibration import evaluate_full_path
from rnr_gym.training.retrieval import for_retrieval


def embed_gallery(
    env: str,
    path: Path,
    per_class: int = 100,
    further: int = 400,
    dimensions: int = 64,
    weights: str | None = "pretrained",
    data_root: str | None = None,
    seed: int = 0,
) -> float:
    """Make an environment's backbone retrieve, and write it to a new file.

    Args:
        env: a registered id with a named backbone.
        path: the safetensors file to write.
        per_class: images of each class in the gallery, the first of `train`.
        further: images of each class after those, to which exit heads are fitted without labels;
            0 for the gallery itself.
        dimensions: of the embedding.
        weights: of the backbone.
        data_root: folder of the images.
        seed: as for `for_retrieval`.

    Returns:
        Recall at 1 of the full path on `route`.

    Raises:
        FileExistsError: `path` exists.
        ValueError: an argument is out of range.
    """
    name = registered_kwargs(env)["backbone"]
    checks.integer("per_class", per_class, 1)
    checks.integer("further", further, 0)
    architecture = zoo.own_architecture(name, "env")
    with claims.claimed(path):
        claims.check_new(path)
        backbone = zoo.named(name, weights)
        train = data.load(architecture.dataset, "train", data_root)
        rank = rank_in_class(train.labels)
        gallery = train.take(rank < per_class)
        images = None
        if further:
            if not (rank >= per_class).any():
                raise ValueError(
                    f"`further` must be 0 where the gallery takes all of `train`, got {further} "
                    f"with {per_class} images of each class"
                )
            images = train.take((rank >= per_class) & (rank < per_class + further))
        retrieval = for_retrieval(backbone, gallery, images, dimensions, seed)

        recall = evaluate_full_path(retrieval, data.load(architecture.dataset, "route", data_root))
        weight_files.save(retrieval, path, {"env": env, "recall_on_route": recall})
    return recall
