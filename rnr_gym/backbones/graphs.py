"""A network as a graph of operations.

`torch.fx` follows the images through the network. Modules that it cannot follow, because what they
do depends on values, stay whole.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx import Node

WHOLE = (nn.Conv2d, nn.Linear, nn.BatchNorm2d, nn.LayerNorm)
"""Modules that stay whole even if they are subclasses from another library."""
ADDITIONS = (operator.add, operator.iadd, torch.add, "add", "add_")


class NetworkGraph:
    """A network as it treats one batch of images.

    Args:
        model: prepared images `(N, C, H, W)` -> logits `(N, classes)`, in evaluation mode.
        images: a batch `(N, C, H, W)`, prepared.

    Raises `ValueError`, which names the module, if the network cannot be followed or cannot run.

    Attributes:
        nodes: the operations, in the order in which they run.
        input: the images.
        output: the logits.
        values: of each operation: the shape of a tensor, any other value itself.
        position: the place of each operation in `nodes`.
        cuts: the tensors through which all that the logits depend on has to pass, in order.
    """

    def __init__(self, model: nn.Module, images: Tensor) -> None:
        self.root = _OneInput(model)
        tracer = _Tracer()
        graph = tracer.trace(self.root)
        if "model" in tracer.whole:
            raise ValueError(
                f"`model` must be a network that torch.fx can follow, got {type(model).__name__} "
                f"({tracer.whole['model']})"
            )
        traced = fx.GraphModule(self.root, graph)
        traced.graph.eliminate_dead_code()

        self.nodes = list(traced.graph.nodes)
        self.position = {node: place for place, node in enumerate(self.nodes)}
        self.input = self.nodes[0]
        output = self.nodes[-1].args[0]
        if not isinstance(output, Node):
            raise ValueError(
                f"`model` must return logits (N, classes), got {type(output).__name__} of outputs"
            )
        self.output = output
        recorder = _Recorder(traced)
        recorder.run(images)
        self.values: dict[Node, Any] = recorder.values

        self._features = {self.input}
        for node in self.nodes:
            if self.shape(node) is not None and not self._features.isdisjoint(node.all_input_nodes):
                self._features.add(node)
        self.cuts = self._find_cuts()

    def module(self, node: Node) -> nn.Module | None:
        """The module that an operation runs; None for functions, methods and parameters."""
        if node.op != "call_module":
            return None
        return self.root.get_submodule(str(node.target))

    def shape(self, node: Node) -> tuple[int, ...] | None:
        """The shape of an operation's tensor; None if it gives something else."""
        value = self.values.get(node)
        return value.sizes if isinstance(value, Shape) else None

    def name(self, node: Node) -> str:
        """The name of a module as the user knows it; of another operation, of the one around it."""
        if node.op in ("call_module", "get_attr"):
            return str(node.target).removeprefix("model.")
        around = self.modules_around(node)
        return around[-1] if around else node.name

    def modules_around(self, node: Node) -> list[str]:
        """Names of the modules that an operation is part of, the outermost first."""
        names = [entry[0] for entry in node.meta.get("nn_module_stack", {}).values()]
        return [name.removeprefix("model.") for name in names if name not in ("", "model")]

    def inputs(self, node: Node) -> list[Node]:
        """The tensors that an operation reads and that depend on the images."""
        return [other for other in node.all_input_nodes if other in self._features]

    def _find_cuts(self) -> list[Node]:
        # What the logits depend on, found from the end.
        needed = {self.output}
        for node in reversed(self.nodes):
            if node in needed:
                needed.update(self.inputs(node))

        # An edge passes by all operations between its ends.
        passed_by = [0] * (len(self.nodes) + 1)
        for node in needed:
            for source in self.inputs(node):
                passed_by[self.position[source] + 1] += 1
                passed_by[self.position[node]] -= 1
        cuts = []
        edges = 0
        for place, node in enumerate(self.nodes):
            edges += passed_by[place]
            if edges == 0 and node in needed:
                cuts.append(node)
        return cuts

    def between(self, start: Node, end: Node) -> list[Node]:
        """The operations after one cut, up to and with another."""
        return self.nodes[self.position[start] + 1 : self.position[end] + 1]


class Shape:
    """The shape of a tensor, told apart from shapes that a network computes with."""

    def __init__(self, tensor: Tensor) -> None:
        self.sizes = tuple(tensor.shape)


class _OneInput(nn.Module):
    """A network without its optional arguments."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Any:
        return self.model(images)


class _Tracer(fx.Tracer):
    """Follows a network into its modules, as far as it can.

    Attributes:
        whole: names of the modules that it could not follow, with the reason.
    """

    def __init__(self) -> None:
        super().__init__()
        self.whole: dict[str, str] = {}

    def is_leaf_module(self, module: nn.Module, qualified_name: str) -> bool:
        return isinstance(module, WHOLE) or super().is_leaf_module(module, qualified_name)

    def call_module(
        self, module: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        stack = self.module_stack.copy()
        try:
            return super().call_module(module, forward, args, kwargs)
        # A module may do anything with what stands for its input, so any error may come.
        except Exception as error:
            name = self.path_of_module(module)
            self.whole[name] = str(error).splitlines()[0] if str(error) else repr(error)
            self.module_stack = stack
            proxy = self.create_proxy("call_module", name, args, kwargs)
            proxy.node.meta["nn_module_stack"] = {**stack, name: (name, type(module))}
            return proxy


class _Recorder(fx.Interpreter):
    """Runs a network and records what its operations give."""

    def __init__(self, network: fx.GraphModule) -> None:
        super().__init__(network)
        self.extra_traceback = False
        self.values: dict[Node, Any] = {}

    def run_node(self, node: Node) -> Any:
        try:
            value = super().run_node(node)
        except Exception as error:
            name = str(node.target).removeprefix("model.")
            reason = str(error).splitlines()[0] if str(error) else repr(error)
            raise ValueError(
                f"`example` must hold images that `model` can classify; its `{name}` fails "
                f"({reason})"
            ) from error
        self.values[node] = Shape(value) if isinstance(value, Tensor) else value
        return value
