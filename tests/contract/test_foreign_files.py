"""Files from elsewhere: damaged, altered or made up, they end in one clear error that names them.

No file makes more memory be used than it could fill itself.
"""

import json
import resource
import struct

import numpy as np
import pytest
import torch

import rnr_gym as rnr
from rnr_gym import agents, storage
from rnr_gym.agents import FitConfig
from rnr_gym.backbones import weights, zoo
from rnr_gym.routing import route_table
from rnr_gym.routing.route_table import RouteTable
from tests.fixtures import small
from tests.fixtures.digits import ENV, use_few_digits

NAN = float("nan")
INFINITE = float("inf")
HUGE = 10**9
FITTED = ("static", "confidence", "thresholds", "eenet", "blockdrop", "ppo", "rnr-dqn")


def refused(path, load):
    """Load a file, which must fail with one line that names it, and without much memory."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=r"must|missing") as caught:
        load(path)
    message = str(caught.value)
    assert "\n" not in message
    assert path.name in message
    # In kilobytes, on Linux.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000
    return message


def rewritten(path, change):
    """The file with its tensors or metadata changed, written as if it had been so."""
    tensors, metadata = storage.load_tensors(path)
    change(tensors, metadata)
    storage.save_tensors(path, tensors, metadata)


def setting(place, value):
    """A change that sets an entry of the metadata, given as `a/b/0`."""

    def change(tensors, metadata):
        *parents, last = place.split("/")
        node = metadata
        for key in parents:
            node = node[int(key) if key.isdigit() else key]
        node[int(last) if last.isdigit() else last] = value

    change.__name__ = f"{place} = {str(value)[:20]}"
    return change


def without(place):
    """A change that removes an entry of the metadata."""

    def change(tensors, metadata):
        *parents, last = place.split("/")
        node = metadata
        for key in parents:
            node = node[key]
        del node[last]

    change.__name__ = f"without {place}"
    return change


def filled(name, value):
    """A change that writes a value into a tensor."""

    def change(tensors, metadata):
        tensors[name] = tensors[name].clone()
        tensors[name].view(-1)[0] = value

    change.__name__ = f"{name} with {value}"
    return change


def lost(name):
    """A change that removes a tensor."""

    def change(tensors, metadata):
        del tensors[name]

    change.__name__ = f"lost {name}"
    return change


def cut(name):
    """A change that halves a tensor."""

    def change(tensors, metadata):
        tensors[name] = tensors[name][: len(tensors[name]) // 2]

    change.__name__ = f"cut {name}"
    return change


def retyped(name, dtype):
    """A change of a tensor's type."""

    def change(tensors, metadata):
        tensors[name] = tensors[name].to(dtype)

    change.__name__ = f"{name} as {dtype}"
    return change


def strange_tensor(tensors, metadata):
    tensors["strange"] = torch.zeros(3)


def only(tensors, metadata):
    """Nothing but a few numbers, whatever the metadata declares."""
    tensors.clear()
    tensors["small"] = torch.zeros(3)


def cut_off(path):
    path.write_bytes(path.read_bytes()[:-30])


def cut_in_header(path):
    path.write_bytes(path.read_bytes()[:20])


def text(path):
    path.write_text("text " * 100)


def empty(path):
    path.write_bytes(b"")


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def header_of(path, header):
    """Write a file with this header and no tensors."""
    head = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(head)) + head)


def huge_header(path):
    path.write_bytes(struct.pack("<Q", 2**62) + b"{}")


def huge_tensor(path):
    tensor = {"dtype": "F32", "shape": [HUGE, HUGE], "data_offsets": [0, 4 * HUGE * HUGE]}
    header_of(path, {"__metadata__": {"rnr_gym": "{}"}, "large": tensor})


def no_metadata(path):
    header_of(path, {"__metadata__": {"other": "{}"}})


def metadata_is_no_json(path):
    header_of(path, {"__metadata__": {"rnr_gym": "{"}})


def metadata_is_a_list(path):
    header_of(path, {"__metadata__": {"rnr_gym": "[]"}})


def metadata_is_empty(path):
    header_of(path, {"__metadata__": {"rnr_gym": "{}"}})


DAMAGES = [
    cut_off,
    cut_in_header,
    text,
    empty,
    flip_a_bit,
    huge_header,
    huge_tensor,
    no_metadata,
    metadata_is_no_json,
    metadata_is_a_list,
    metadata_is_empty,
]
EVERY_DAMAGE = pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)


def changes(*all_changes):
    return pytest.mark.parametrize("change", all_changes, ids=lambda change: change.__name__)


@pytest.fixture(params=["multipath", "vgg"])
def backbone_file(request, tmp_path):
    path = tmp_path / "backbone.safetensors"
    weights.save(small.backbone(request.param), path)
    return path


@EVERY_DAMAGE
def test_damaged_backbone_is_refused(backbone_file, damage):
    damage(backbone_file)
    refused(backbone_file, zoo.load)


@changes(
    without("config/widths"),
    without("config/kind"),
    setting("config", 3),
    setting("config", []),
    setting("config/kind", "transformer"),
    setting("config/kind", ["vgg"]),
    setting("config/unknown", 1),
    setting("config/widths", "wide"),
    setting("config/widths", [8 * HUGE, 8 * HUGE]),
    setting("config/widths/0", 8 * HUGE),
    setting("config/widths/0", 8.0),
    setting("config/blocks/0", HUGE),
    setting("config/blocks", [1] * 100_000),
    setting("config/blocks", [20, 20, 20]),
    setting("config/classes", HUGE),
    setting("config/classes", -1),
    setting("config/image_shape", [HUGE, HUGE, HUGE]),
    setting("config/image_shape", []),
    setting("config/glance_widths/0", HUGE),
    setting("config/glance_strides/0", HUGE),
    setting("config/exits", [HUGE]),
    setting("config/summary_groups", HUGE),
    setting("config/whitened", "yes"),
    lost("head.linear.bias"),
    cut("head.linear.bias"),
    filled("head.linear.bias", NAN),
    filled("summary_std", INFINITE),
    filled("loss_scale", NAN),
    strange_tensor,
    only,
)
def test_altered_backbone_is_refused(backbone_file, change):
    rewritten(backbone_file, change)
    refused(backbone_file, zoo.load)


@changes(setting("config/groups", HUGE), setting("config/style", "dense"))
def test_altered_channel_backbone_is_refused(tmp_path, change):
    path = tmp_path / "backbone.safetensors"
    weights.save(small.backbone("vgg"), path)
    rewritten(path, change)
    refused(path, zoo.load)


@pytest.fixture(scope="module")
def fitted_dir(tmp_path_factory):
    """A router of each agent."""
    folder = tmp_path_factory.mktemp("fitted")
    with pytest.MonkeyPatch.context() as patch:
        use_few_digits(patch)
        fit_config = FitConfig(ENV, steps=512, progress=False)
        for name in FITTED:
            router = agents.agent(name).fit(fit_config)
            agents.save(router, folder / f"{name}.safetensors", {"agent": name})
    return folder


@pytest.fixture
def router_file(fitted_dir, tmp_path):
    """A copy of an agent's file, by its name."""

    def copy(name):
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes((fitted_dir / path.name).read_bytes())
        return path

    return copy


def load_router(path):
    return agents.load(path, rnr.RoutingEnv().routing_spec)


@pytest.mark.parametrize("name", FITTED)
def test_untouched_router_is_loaded(router_file, name):
    load_router(router_file(name))


@pytest.mark.parametrize("name", ["static", "ppo"])
@EVERY_DAMAGE
def test_damaged_router_is_refused(router_file, name, damage):
    path = router_file(name)
    damage(path)
    refused(path, load_router)


ALTERED = {
    "static": [
        without("router/paths"),
        setting("agent", "sarsa"),
        setting("agent", ["static"]),
        setting("agent", "ppo"),
        setting("router", []),
        setting("router/paths", []),
        setting("router/paths", "3333"),
        setting("router/paths/0", [9, 3, 3, 3]),
        setting("router/paths/0", [3, 3, 3]),
        setting("router/paths/0", [3, 3, 3, -1]),
        setting("router/paths/0", [0, 3, 3, 3]),
        setting("router/paths/0", [-1, -1, -1, -1]),
        setting("router/paths/0/0", 3.5),
        setting("router/paths/0/0", 1.5),
        setting("router/paths/0/0", HUGE),
        setting("router/edges/0", NAN),
        setting("router/edges/0", INFINITE),
        setting("router/edges/0", -1.0),
        setting("router/edges", []),
        setting("problem", "000000000000"),
    ],
    "confidence": [
        without("router/thresholds"),
        setting("router/thresholds/0", NAN),
        setting("router/thresholds/0", -0.5),
        setting("router/thresholds/0", HUGE),
        setting("router/thresholds", [0.5]),
        setting("router/tradeoffs/0", 0.0),
        setting("router/tradeoffs/1", NAN),
        setting("router/tradeoffs", []),
    ],
    "thresholds": [
        setting("router/sub_paths/0", 9),
        setting("router/sub_paths/0", -1),
        setting("router/sub_paths/0", 0),
        setting("router/sub_paths/0", 1.5),
        setting("router/thresholds/0", [0.5]),
        setting("router/thresholds/0/0", NAN),
        setting("router/tradeoffs/0", 100.0),
    ],
    "eenet": [
        lost("bias_in"),
        cut("weight_in"),
        filled("weight_out", NAN),
        retyped("weight_out", torch.float64),
        setting("router/sub_paths/0", 9),
    ],
    "blockdrop": [
        setting("router/hidden", HUGE),
        setting("router/hidden", -1),
        setting("router/hidden", "wide"),
        setting("router/unknown", 3),
        cut("encoder.weight"),
        lost("encoder.weight"),
    ],
    "ppo": [
        setting("router/net", [HUGE, HUGE]),
        setting("router/net", [60_000, 60_000]),
        setting("router/net/0", -1),
        setting("router/net", "wide"),
        setting("router/recipe", "os:system"),
        setting("router/summary_scale", "large"),
        setting("router/summary_scale", NAN),
        filled("action_net.bias", NAN),
        lost("action_net.bias"),
        cut("action_net.weight"),
        strange_tensor,
        only,
    ],
    "rnr-dqn": [
        setting("router/hidden", HUGE),
        setting("router/embedding", HUGE),
        setting("router/epsilon", 1),
        filled("decoder.bias", INFINITE),
        lost("decoder.bias"),
    ],
}


@pytest.mark.parametrize(
    ("name", "change"),
    [(name, change) for name, of_name in ALTERED.items() for change in of_name],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_altered_router_is_refused(router_file, name, change):
    path = router_file(name)
    rewritten(path, change)
    refused(path, load_router)


@pytest.fixture(scope="module")
def table():
    backbone = small.backbone("multipath")
    spec = rnr.RoutingSpec.of(backbone)
    return route_table.build(backbone, small.images(6), spec, progress=False)


@pytest.fixture
def table_file(table, tmp_path):
    path = tmp_path / "table.safetensors"
    table.save(path)
    return path


@EVERY_DAMAGE
def test_damaged_table_is_refused(table_file, damage):
    damage(table_file)
    refused(table_file, RouteTable.load)


def many_layers(tensors, metadata):
    """A tree of paths with more nodes than there are atoms."""
    num_layers = 200
    num_paths = tensors["valid"].shape[1]
    tensors["valid"] = torch.ones(num_layers, num_paths, dtype=torch.bool)
    tensors["macs.layers"] = torch.ones(num_layers, num_paths, num_paths, dtype=torch.int64)
    tensors["macs.exits"] = torch.ones(num_layers, num_paths, dtype=torch.int64)


def wrapped_around(tensors, metadata):
    """So many paths that their number in 64 bits is a small one."""
    num_layers = 74
    num_paths = tensors["valid"].shape[1]
    tensors["valid"] = torch.zeros(num_layers, num_paths, dtype=torch.bool)
    tensors["valid"][:, 1] = True
    tensors["valid"][10:, 2] = True
    tensors["macs.layers"] = torch.ones(num_layers, num_paths, num_paths, dtype=torch.int64)
    tensors["macs.exits"] = torch.ones(num_layers, num_paths, dtype=torch.int64)


def no_layers(tensors, metadata):
    for name in ("valid", "macs.layers", "macs.exits"):
        tensors[name] = tensors[name][:0]


def nothing_is_valid(tensors, metadata):
    tensors["valid"] = torch.zeros_like(tensors["valid"])


def nothing_costs(tensors, metadata):
    for name in ("macs.layers", "macs.exits", "macs.head"):
        tensors[name] = torch.zeros_like(tensors[name])
    metadata["stem"] = 0


@changes(
    without("spec"),
    without("stem"),
    setting("spec", []),
    setting("spec/num_classes", HUGE),
    setting("spec/num_classes", 2.0),
    setting("spec/pooled_width", -1),
    setting("spec/glance_width", HUGE),
    setting("spec/loss_scale", NAN),
    setting("spec/loss_scale", "one"),
    setting("spec/has_exits", "yes"),
    setting("spec/quantised", True),
    setting("spec/unknown", 1),
    setting("stem", -1),
    setting("stem", 1.5),
    lost("labels"),
    lost("macs.head"),
    cut("labels"),
    cut("prediction"),
    cut("summary"),
    cut("valid"),
    cut("macs.head"),
    filled("labels", 9),
    filled("labels", -1),
    filled("prediction", 99),
    filled("prediction", -1),
    filled("loss", NAN),
    filled("loss", -1.0),
    filled("summary", INFINITE),
    filled("macs.layers", -5),
    filled("macs.exits", 2**62),
    retyped("macs.head", torch.float64),
    retyped("loss", torch.bfloat16),
    retyped("valid", torch.int64),
    many_layers,
    wrapped_around,
    no_layers,
    nothing_is_valid,
    nothing_costs,
    only,
)
def test_altered_table_is_refused(table_file, change):
    rewritten(table_file, change)
    refused(table_file, RouteTable.load)


def test_untouched_table_is_loaded(table, table_file):
    np.testing.assert_array_equal(RouteTable.load(table_file).summary, table.summary)
