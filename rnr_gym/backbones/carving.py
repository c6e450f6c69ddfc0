"""Networks that are cut out of the graph of another one."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

from torch import fx, nn
from torch.fx import Node

from rnr_gym.backbones.graphs import NetworkGraph

IN_PLACE = (operator.iadd, operator.imul, operator.isub, operator.itruediv)
MAY_ALIAS = (nn.Identity, nn.Dropout, nn.Dropout2d, nn.Flatten, nn.Unflatten)
"""Modules that may return their input, or a view of it."""
MAY_ALIAS_NAMES = frozenset(
    ("view", "reshape", "flatten", "permute", "transpose", "squeeze", "unsqueeze", "expand")
) | frozenset(("contiguous", "dropout", "stochastic_depth", "to", "float", "getitem", "chunk"))
"""The same of functions and methods."""


def carved(
    source: NetworkGraph,
    start: Node,
    end: Node,
    instead: Mapping[Node, Node] | None = None,
    modules: Mapping[Node, nn.Module] | None = None,
) -> fx.GraphModule:
    """What leads from one cut of a network to another, as a network of the same modules.

    Args:
        source: the network.
        start: what the new network reads.
        end: what it returns.
        instead: operations that are left out, each with the one whose tensor takes its place.
        modules: modules that run instead of the network's own.
    """
    return _Carving(source, start, instead or {}, modules or {}).network(end)


class _Carving:
    """A new graph, copied from a part of a network's."""

    def __init__(
        self,
        source: NetworkGraph,
        start: Node,
        instead: Mapping[Node, Node],
        modules: Mapping[Node, nn.Module],
    ) -> None:
        self.source = source
        self.start = start
        self.instead = instead
        self.modules = modules
        self.graph = fx.Graph()
        self.root: dict[str, Any] = {}
        self.features = self.graph.placeholder("features")
        self.copies: dict[Node, Node] = {start: self.features}

    def network(self, end: Node) -> fx.GraphModule:
        """Copy what leads to `end`."""
        end = self._taken(end)
        needed = self._needed(end)
        for node in self.source.nodes:
            if node in needed and node not in self.copies:
                self._copy(node)
        self.graph.output(self.copies[end])
        self._protect_features()
        return fx.GraphModule(self.root, self.graph)

    def _taken(self, node: Node) -> Node:
        while node in self.instead:
            node = self.instead[node]
        return node

    def _needed(self, end: Node) -> set[Node]:
        """The operations that `end` depends on."""
        needed = {end}
        waiting = [end]
        while waiting:
            node = waiting.pop()
            if node is self.start or self._is_outside_size(node):
                continue
            for read in map(self._taken, node.all_input_nodes):
                if read not in needed:
                    needed.add(read)
                    waiting.append(read)
        return needed

    def _is_outside_size(self, node: Node) -> bool:
        """Whether it is a number that follows from the shape of a tensor before the start."""
        if node.op == "get_attr" or self.source.shape(node) is not None:
            return False
        # Through other numbers, up to the tensors that have these sizes.
        waiting = list(node.all_input_nodes)
        while waiting:
            read = waiting.pop()
            if self.source.shape(read) is None:
                waiting += read.all_input_nodes
            elif self.source.position[read] < self.source.position[self.start]:
                return True
        return False

    def _copy(self, node: Node) -> None:
        if self._is_outside_size(node):
            self.copies[node] = self._size_here(node)
            return
        copied = self.graph.node_copy(node, lambda read: self.copies[self._taken(read)])
        self.copies[node] = copied
        # Names are flat, and those of operations, so that one module may have several versions.
        if node.op == "call_module":
            copied.target = node.name
            self.root[node.name] = self.modules.get(node, self.source.module(node))
        elif node.op == "get_attr":
            copied.target = node.name
            self.root[node.name] = operator.attrgetter(str(node.target))(self.source.root)

    def _size_here(self, node: Node) -> Any:
        """The batch size, of the features; any other size, as it was when the graph was made."""
        is_size = node.op == "call_method" and node.target == "size" and node.args[1:] == (0,)
        is_item = node.target is operator.getitem and node.args[1] == 0
        if is_size or is_item:
            return self.graph.call_method("size", (self.features, 0))
        return self.source.values[node]

    def _protect_features(self) -> None:
        """Copy the features first if something would write into them: others may need them."""
        for node in self.graph.nodes:
            if _writes(node, self._module_here(node)) and self._aliases_features(node.args[0]):
                break
        else:
            return
        with self.graph.inserting_after(self.features):
            copied = self.graph.call_method("clone", (self.features,))
        self.features.replace_all_uses_with(copied, lambda user: user is not copied)

    def _aliases_features(self, node: Any) -> bool:
        """Whether a tensor may share memory with the features."""
        if not isinstance(node, Node):
            return False
        if node is self.features:
            return True
        module = self._module_here(node)
        name = getattr(node.target, "__name__", node.target)
        if module is not None:
            passes = isinstance(module, MAY_ALIAS) or type(module).__name__ == "StochasticDepth"
        else:
            passes = name in MAY_ALIAS_NAMES
        passes = passes or _writes(node, module)
        return passes and bool(node.args) and self._aliases_features(node.args[0])

    def _module_here(self, node: Node) -> nn.Module | None:
        return self.root[str(node.target)] if node.op == "call_module" else None


def _writes(node: Node, module: nn.Module | None) -> bool:
    """Whether an operation writes into the tensor that it reads first."""
    if not node.args:
        return False
    if module is not None:
        return bool(getattr(module, "inplace", False))
    if node.target in IN_PLACE or node.kwargs.get("inplace"):
        return True
    name = str(getattr(node.target, "__name__", node.target))
    return name.endswith("_") and not name.endswith("__")
