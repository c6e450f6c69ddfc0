"""Prune the plain network of `rnr-cifar10` and train what is left: a rival of routing.

DepGraph (Fang et al., *DepGraph: Towards Any Structural Pruning*, 2023) finds which filters belong
together and removes the weakest, over all layers at once, until a share of the MACs is left. Only
channels inside the residual branches are pruned: the parameter-free shortcuts need the widths of
the stages as they are. What is left trains for further epochs by the recipe of the whole network.
Resumes where it was stopped.
Run: `pip install torch-pruning`, then `python benchmarks/cifar10/pruned.py`, with CIFAR-10 at hand;
about 25 minutes on two cores.
"""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import torch
import torch_pruning as tp
import tyro
from torch import nn

from rnr_gym import data, storage
from rnr_gym.backbones import zoo
from rnr_gym.backbones.base import Backbone
from rnr_gym.training.calibration import evaluate_full_path
from rnr_gym.training.pretraining import Pretraining, Schedule, complete

NAME = "rnr-cifar10"
SEARCH_STEPS = 12
"""Bisections of the pruning ratio; MACs change by steps of 8 channels in the end."""


@dataclass
class Args:
    """What to prune."""

    shares: tuple[float, ...] = (0.3, 0.45, 0.6)
    """Shares of the MACs of the plain network that are left."""
    epochs: int = 6
    """Passes over the training images after pruning."""
    out: Path = Path("benchmarks/cifar10/pruned.json")
    seed: int = 0


def plain_network() -> Backbone:
    """The full path of the pretrained backbone, without other paths, exits and glance."""
    architecture = zoo.ARCHITECTURES[NAME]
    pretrained = zoo.named(NAME)
    network = zoo.from_config(
        {**architecture.config, "inner": [1.0], "exits": [], "glance_widths": []}
    )
    # `plain` shares its modules with the network.
    network.plain().load_state_dict(pretrained.plain().state_dict())
    network.image_mean.copy_(pretrained.image_mean)
    network.image_std.copy_(pretrained.image_std)
    return network


def pruned(ratio: float) -> tuple[Backbone, int]:
    """The plain network without that share of its inner channels, and its MACs."""
    network = plain_network()
    plain = network.plain().eval()
    images = torch.zeros(1, *network.image_shape)

    # All but the first convolutions of the branches, whose outputs no shortcut reads.
    first = {layer.branches[-1].conv1 for layer in network.layers}
    kept = [
        module
        for module in plain.modules()
        if isinstance(module, nn.Conv2d | nn.Linear) and module not in first
    ]
    pruner = tp.pruner.BasePruner(
        plain,
        images,
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        global_pruning=True,
        pruning_ratio=ratio,
        # No layer vanishes, or the network would fall apart.
        max_pruning_ratio=0.9,
        round_to=8,
        ignored_layers=[*kept, network.stem.bias],
    )
    pruner.step()

    # The plain network runs through the last of the norms; the others must have its channels, too.
    for layer in network.layers:
        norms = layer.branches[-1].norms1
        for idx in range(len(norms) - 1):
            norms[idx] = deepcopy(norms[-1])
    return network, counted_macs(network)


def counted_macs(network: Backbone) -> int:
    """The MACs of the network as it is; its table still has those before it was pruned."""
    macs = network.mac_table.plain
    for layer in network.layers:
        branch = layer.branches[-1]
        removed = 1.0 - branch.conv1.out_channels / layer.inner[-1]
        # Both convolutions of a branch cost in proportion to the channels between them.
        macs -= round(removed * layer.macs(layer.num_paths - 1, branch.conv1.in_channels))
    return int(macs)


def pruned_to(share: float) -> tuple[Backbone, int]:
    """The network whose MACs are nearest to a share of those before it was pruned."""
    target = share * plain_network().mac_table.plain
    low, high = 0.0, 0.9
    candidates = []
    for _ in range(SEARCH_STEPS):
        ratio = (low + high) / 2
        network, macs = pruned(ratio)
        candidates.append((abs(macs - target), network, macs))
        if macs > target:
            low = ratio
        else:
            high = ratio
    _, network, macs = min(candidates, key=lambda candidate: candidate[0])
    return network, macs


def main(args: Args) -> None:
    """Prune and train to each share that is not in the results yet."""
    results = []
    if args.out.exists():
        results = json.loads(args.out.read_text())
    splits = {split: data.load("cifar10", split) for split in data.SPLITS}
    schedule = Schedule(epochs=args.epochs, path_weight=0.0, seed=args.seed)

    for share in args.shares:
        network, macs = pruned_to(share)
        if any(row["macs"] == macs for row in results):
            continue

        before = evaluate_full_path(network, splits["route"])
        checkpoint = args.out.with_suffix(f".{macs}.part")
        training = Pretraining(network, splits["train"], data.dataset("cifar10"), schedule)
        network = complete(training, splits, checkpoint, "pruned")

        accuracy = evaluate_full_path(network, splits["test"])
        row = {
            "macs": macs,
            "inner": [layer.branches[-1].conv1.out_channels for layer in network.layers],
            "route_accuracy_untrained": before,
            "test_accuracy": accuracy,
        }
        results.append(row)
        # After each network, so that an interruption costs no finished one.
        storage.save_json(args.out, sorted(results, key=lambda row: row["macs"]))
        checkpoint.unlink(missing_ok=True)
        print(f"{macs:,} MACs: {accuracy:.1%}")


if __name__ == "__main__":
    main(tyro.cli(Args))
