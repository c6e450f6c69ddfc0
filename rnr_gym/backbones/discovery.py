"""Finding the blocks of a network: the stretches of its graph that can be skipped or narrowed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby, pairwise
from typing import NamedTuple

from torch import nn
from torch.fx import Node

from rnr_gym.backbones.channel_groups import is_activation, is_pooling
from rnr_gym.backbones.graphs import ADDITIONS, NetworkGraph


class Block(NamedTuple):
    """A stretch of a network between two tensors through which everything passes.

    Attributes:
        name: the name of its module, or of its first and last ones.
        kind: `"residual"` (something is added to what it reads), `"projected"` (its shortcut
            computes something, as where the shape changes) or `"plain"` (no shortcut).
        start: what it reads.
        end: what it returns.
        skips: the sums that end residual branches, each with what the branch is added to.
    """

    name: str
    kind: str
    start: Node
    end: Node
    skips: dict[Node, Node]


def find_blocks(network: NetworkGraph) -> list[Block]:
    """The blocks of a network, in order.

    Where branches meet in a sum there is a residual block. Between them, convolutions that follow
    each other in one module are a block, and of other ones every two.
    """
    blocks: list[Block] = []
    chain: list[Node] = []
    for start, end in pairwise(network.cuts):
        if _is_sum(network, end) and _is_map(network, start) and _is_map(network, end):
            blocks += _plain_blocks(network, chain)
            chain = []
            blocks.append(_block(network, start, _activated(network, end)))
        else:
            chain.append(end)
    return blocks + _plain_blocks(network, chain)


def named_blocks(network: NetworkGraph, names: Sequence[str]) -> list[Block]:
    """The blocks that modules of these names are.

    Raises `ValueError`, which names the module, if there is no such module, if it has more than one
    input or output, or if it does not come after the ones before it.
    """
    cuts = set(network.cuts)
    blocks: list[Block] = []
    for name in names:
        inside = [node for node in network.nodes if name in network.modules_around(node)]
        inside = [node for node in inside if network.shape(node) is not None]
        if not inside:
            raise ValueError(f"`blocks` must name modules that `model` runs, got {name!r}")
        sources = []
        for node in inside:
            sources += [read for read in network.inputs(node) if read not in inside]
        end = inside[-1]
        if set(sources) - cuts or len(set(sources)) != 1 or end not in cuts:
            raise ValueError(
                f"`blocks` must name modules that all features pass through, got {name!r}, which "
                "something passes by"
            )
        start = sources[0]
        for node in (start, end):
            if not _is_map(network, node):
                raise ValueError(
                    "`blocks` must name modules with feature maps (N, C, H, W) before and after, "
                    f"got {name!r} with {network.shape(node)}"
                )
        if blocks and network.position[start] < network.position[blocks[-1].end]:
            raise ValueError(
                f"`blocks` must follow each other, got {name!r}, which does not come after "
                f"{blocks[-1].name!r}"
            )
        blocks.append(_block(network, start, end)._replace(name=name))
    return blocks


def _block(network: NetworkGraph, start: Node, end: Node) -> Block:
    """The block between two cuts."""
    inside = network.between(start, end)
    reached = [start, *(cut for cut in network.cuts if cut in inside)]
    skips = {}
    sums = 0
    for before, after in pairwise(reached):
        if _is_sum(network, after):
            sums += 1
            if before in _summands(network, after):
                skips[after] = before
    kind = "plain"
    if sums:
        kind = "residual" if len(skips) == sums else "projected"
    return Block(_title(network, inside, has_sum=sums > 0), kind, start, end, skips)


def _summands(network: NetworkGraph, total: Node) -> Iterator[Node]:
    """What a sum of two or more is made of."""
    for node in network.inputs(total):
        while isinstance(network.module(node), nn.Identity):
            (node,) = network.inputs(node)
        if _is_sum(network, node) and len(node.users) == 1:
            yield from _summands(network, node)
        else:
            yield node


def _plain_blocks(network: NetworkGraph, chain: Sequence[Node]) -> list[Block]:
    """Blocks without shortcuts, of consecutive cuts."""
    # The first convolution of a network is its stem, so that the first decision has features.
    stem = next((node for node in network.nodes if _is_conv(network, node)), None)
    convs = []
    for node in chain:
        conv = network.module(node)
        if isinstance(conv, nn.Conv2d) and conv.groups == 1 and node is not stem:
            convs.append(node)
        if is_pooling(node, conv):
            break
    blocks = []
    for run in _runs(network, convs):
        start = network.inputs(run[0])[0]
        end = _activated(network, run[-1], norms=True)
        blocks.append(_block(network, start, end))
    return blocks


def _runs(network: NetworkGraph, convs: Sequence[Node], depth: int = 0) -> list[list[Node]]:
    """Convolutions that form a block: those of one module; of others, every two or three."""

    def module_at_depth(conv: Node) -> str:
        around = network.modules_around(conv)
        return around[min(depth, len(around) - 1)]

    parts = [list(part) for _, part in groupby(convs, module_at_depth)]
    deepest = max((len(network.modules_around(conv)) for conv in convs), default=0)
    if len(parts) == 1 and len(convs) > 1 and depth < deepest:
        return _runs(network, convs, depth + 1)

    runs: list[list[Node]] = []
    for is_single, group in groupby(parts, lambda part: len(part) == 1):
        if not is_single:
            runs += group
            continue
        singles = [part[0] for part in group]
        pairs = [singles[place : place + 2] for place in range(0, len(singles) - 1, 2)]
        if pairs and len(singles) % 2:
            pairs[-1].append(singles[-1])
        runs += pairs
    return runs


def _activated(network: NetworkGraph, node: Node, norms: bool = False) -> Node:
    """The last of the activations, and norms, that follow a tensor and that nothing passes by."""
    while len(node.users) == 1:
        (user,) = node.users
        module = network.module(user)
        passes = is_activation(user, module) or (norms and isinstance(module, nn.BatchNorm2d))
        if not passes or network.shape(user) != network.shape(node):
            break
        node = user
    return node


def _is_map(network: NetworkGraph, node: Node) -> bool:
    return len(network.shape(node) or ()) == 4


def _is_conv(network: NetworkGraph, node: Node) -> bool:
    return isinstance(network.module(node), nn.Conv2d)


def _is_sum(network: NetworkGraph, node: Node) -> bool:
    # A keyword may be a factor.
    return node.target in ADDITIONS and len(network.inputs(node)) > 1 and not node.kwargs


def _title(network: NetworkGraph, inside: Sequence[Node], has_sum: bool) -> str:
    """The module that holds all operations and no others; else the first and the last module."""
    stacks = []
    for node in inside:
        module = network.module(node)
        # The activation after a sum may belong to the module around.
        if module is not None or (has_sum and not is_activation(node, module)):
            stacks.append(network.modules_around(node))
    common = [names[0] for names in zip(*stacks, strict=False) if len(set(names)) == 1]
    holding = []
    for name in common:
        held = [node for node in network.nodes if name in network.modules_around(node)]
        if set(held) <= set(inside):
            holding.append(name)
    if not holding:
        modules = [node for node in inside if network.module(node) is not None]
        return f"{network.name(modules[0])} to {network.name(modules[-1])}"
    # A block is the module that adds; a stage may have one block only.
    return holding[-1] if has_sum else holding[0]
