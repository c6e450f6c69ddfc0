"""Every public argument given what it does not take: one clear error, and nothing written.

The error names the argument in backticks, says the rule, and shows what was received.
"""

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import rnr_gym as rnr
from rnr_gym.experiments.comparison import compare
from rnr_gym.routing.live import Live
from tests.fixtures import small
from tests.fixtures.files import snapshot

ENV = "RNR-Digits-v0"
HUGE = 10**400
MAKE = [
    ("exits", "False"),
    ("exits", 1),
    ("exits", None),
    ("vector_reward", "no"),
    ("vector_reward", 0),
    ("download", "False"),
    ("download", 1),
    ("device", "meta"),
    ("device", "nowhere"),
    ("device", ["cpu"]),
    ("device", float("nan")),
    ("device", None),
    ("dtype", "float16"),
    ("dtype", None),
    ("dtype", ["float32"]),
    ("data_root", 5),
    ("data_root", ["images"]),
    ("split", np.array(["route"])),
    ("split", "training"),
    ("split", None),
    ("weights", ["pretrained"]),
    ("weights", "nowhere"),
    ("weights", 3),
    ("backbone", "nowhere"),
    ("backbone", 3),
    ("dataset", "nowhere"),
    ("dataset", np.zeros((1, 1, 12, 12), np.uint8)),
    ("backend", "tables"),
    ("backend", True),
    ("cost", "money"),
    ("cost", 3),
    ("cost", None),
    ("tradeoff", HUGE),
    ("tradeoff", 1j),
    ("tradeoff", "0.3"),
    ("tradeoff", True),
    ("tradeoff", float("nan")),
    ("tradeoff", float("inf")),
    ("tradeoff", -0.1),
    ("tradeoff", (0.1,)),
    ("tradeoff", (0.3, 0.1)),
    ("tradeoff", (0.0, 0.1)),
    ("tradeoff", np.array([0.1, 0.3])),
    ("reward", "money"),
    ("reward", ["accuracy"]),
    ("render_mode", "film"),
    ("render_mode", ["ansi"]),
]
"""Argument and value, of both environments."""


def shown(value):
    """Enough of a value for the name of a test."""
    return repr(value)[:20]


def rejects(argument, call):
    """Run `call`, which must raise one clear error about the argument; its message."""
    with pytest.raises(ValueError, match=rf"`{re.escape(argument)}`") as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert re.search(r"must|may|got|exclude", message), message
    return message


@pytest.mark.parametrize(("argument", "value"), MAKE, ids=shown)
def test_make_rejects(argument, value):
    rejects(argument, lambda: rnr.RoutingEnv(**{argument: value}))


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        *MAKE,
        ("num_envs", 0),
        ("num_envs", 2.0),
        ("num_envs", True),
        ("num_envs", HUGE * -1),
        ("render_mode", "human"),
        ("autoreset_mode", "sometimes"),
        ("autoreset_mode", 1),
        ("autoreset_mode", None),
    ],
    ids=shown,
)
def test_make_vec_rejects(argument, value):
    rejects(argument, lambda: rnr.RoutingVectorEnv(**{argument: value}))


BOTH = [
    pytest.param(rnr.RoutingEnv, id="scalar"),
    pytest.param(rnr.RoutingVectorEnv, id="vector"),
]


@pytest.mark.parametrize("make", BOTH)
@pytest.mark.parametrize("value", [-1, 1.5, "1", True, [-1]], ids=shown)
def test_reset_rejects_seed(make, value):
    env = make()
    rejects("seed", lambda: env.reset(seed=value))


@pytest.mark.parametrize("make", BOTH)
@pytest.mark.parametrize(
    ("argument", "options"),
    [
        ("options", ["index"]),
        ("options", {"image": 3}),
        ("options", {1: 2}),
        ('options["index"]', {"index": HUGE}),
        ('options["index"]', {"index": 1j}),
        ('options["index"]', {"index": -1}),
        ("tradeoff", {"tradeoff": 1j}),
        ("tradeoff", {"tradeoff": HUGE}),
    ],
    ids=shown,
)
def test_reset_rejects_options(make, argument, options):
    env = make()
    rejects(argument, lambda: env.reset(options=options))


@pytest.mark.parametrize(
    "value",
    [1.0, "1", None, [1, 1], [[1], [1, 1]], HUGE, np.ones(1, np.float32), np.array([4])],
    ids=shown,
)
def test_vector_step_rejects_actions(value):
    env = rnr.RoutingVectorEnv()
    env.reset(seed=0)
    rejects("actions", lambda: env.step(value))


@pytest.mark.parametrize(
    ("argument", "kwargs"),
    [
        ("env", {"env": "RNR-Nowhere-v0"}),
        ("env", {"env": ["RNR-Digits-v0"]}),
        ("kwargs", {"kwargs": "exits"}),
        ("kwargs", {"kwargs": {"split": "test"}}),
        ("kwargs", {"kwargs": {"tradeoff": 0.1}}),
        ("seed", {"seed": -1}),
        ("seed", {"seed": 2**32}),
        ("seed", {"seed": 1.0}),
        ("seed", {"seed": "0"}),
        ("steps", {"steps": 0}),
        ("steps", {"steps": -5}),
        ("steps", {"steps": 1e5}),
        ("tradeoffs", {"tradeoffs": 0.3}),
        ("kwargs", {"kwargs": {"reward": "accuracy"}}),
        ("kwargs", {"kwargs": {1: 2}}),
        ("tradeoffs", {"tradeoffs": (0.0, 0.0)}),
        ("tradeoff", {"tradeoffs": (0.0, 1.0)}),
        ("tradeoff", {"tradeoffs": (1.0, 0.1)}),
        ("progress", {"progress": "no"}),
    ],
    ids=shown,
)
def test_fit_config_rejects(argument, kwargs):
    rejects(argument, lambda: rnr.FitConfig(**{"env": ENV, **kwargs}))


@pytest.mark.parametrize(
    ("argument", "kwargs"),
    [
        ("env_id", {"env_id": "CartPole-v1"}),
        ("env_id", {"env_id": "rnr_gym:CartPole-v1"}),
        ("env_id", {"env_id": 3}),
        ("n_envs", {"n_envs": -1}),
        ("n_envs", {"n_envs": "4"}),
        ("seed", {"seed": -1}),
        ("seed", {"seed": "0"}),
        ("monitor_dir", {"monitor_dir": 3}),
        ("env_kwargs", {"env_kwargs": 5}),
        ("env_kwargs", {"env_kwargs": ["tradeoff"]}),
        ("tradeoff", {"env_kwargs": {"tradeoff": 5}}),
    ],
    ids=shown,
)
def test_make_vec_env_rejects(argument, kwargs):
    rejects(argument, lambda: rnr.make_vec_env(**{"env_id": ENV, "n_envs": 1, **kwargs}))


@pytest.mark.parametrize(
    ("argument", "kwargs"),
    [
        ("dataset", {"name": 3}),
        ("dataset", {"name": "mnist"}),
        ("split", {"split": None}),
        ("data_root", {"data_root": 5}),
        ("download", {"download": "no"}),
    ],
    ids=shown,
)
def test_load_images_rejects(argument, kwargs):
    rejects(argument, lambda: rnr.load_images(**{"name": "digits", "split": "route", **kwargs}))


PIXELS = np.zeros((2, 1, 12, 12), np.uint8)


@pytest.mark.parametrize(
    ("argument", "args"),
    [
        ("images", (torch.zeros(2, 1, 12, 12, dtype=torch.uint8), [0, 1])),
        ("images", (PIXELS.astype(np.float32), [0, 1])),
        ("images", (PIXELS[0], [0])),
        ("images", (PIXELS[:0], [])),
        ("labels", (PIXELS, [0])),
        ("labels", (PIXELS, [0.0, 1.0])),
        ("labels", (PIXELS, [0, -1])),
        ("labels", (PIXELS, "01")),
        ("labels", (PIXELS, None)),
        ("classes", (PIXELS, [0, 1], 3)),
        ("classes", (PIXELS, [0, 1], "ab")),
        ("labels", (PIXELS, [0, 2], ("a", "b"))),
    ],
    ids=shown,
)
def test_image_set_rejects(argument, args):
    rejects(argument, lambda: rnr.ImageSet.of(*args))


NETWORK = {"image_shape": (1, 12, 12), "classes": 3, "widths": (32, 64), "blocks": (1, 1)}


@pytest.mark.parametrize("kind", [rnr.MultiPathResNet, rnr.ChannelPrunedNet])
@pytest.mark.parametrize(
    ("argument", "kwargs"),
    [
        ("image_shape", {"image_shape": (12, 12)}),
        ("image_shape", {"image_shape": (1, 12, 0)}),
        ("image_shape", {"image_shape": 12}),
        ("image_shape", {"image_shape": (1, 12.0, 12)}),
        ("classes", {"classes": 1}),
        ("classes", {"classes": "10"}),
        ("classes", {"classes": 2.5}),
        ("widths", {"widths": (32, 44)}),
        ("widths", {"widths": (64, 32)}),
        ("widths", {"widths": (0, 32)}),
        ("widths", {"widths": ("8", "16")}),
        ("blocks", {"blocks": (1, 0)}),
        ("blocks", {"blocks": (1,)}),
        ("blocks", {"blocks": (1, 1.5)}),
        ("exits", {"exits": (0,)}),
        ("exits", {"exits": (9,)}),
        ("exits", {"exits": 1}),
        ("glance_widths", {"glance_widths": (0,), "glance_strides": (1,)}),
        ("glance_widths", {"glance_widths": ("8",), "glance_strides": (1,)}),
        ("glance_strides", {"glance_widths": (8,), "glance_strides": (0,)}),
        ("glance_strides", {"glance_widths": (8, 8), "glance_strides": (1,)}),
        ("summary_groups", {"summary_groups": -1}),
        ("summary_groups", {"summary_groups": 3}),
        ("summary_groups", {"summary_groups": "2"}),
        ("whitened", {"whitened": "no"}),
    ],
    ids=shown,
)
def test_backbones_reject(kind, argument, kwargs):
    rejects(argument, lambda: kind(**{**NETWORK, **kwargs}))


@pytest.mark.parametrize(
    ("kind", "argument", "kwargs"),
    [
        (rnr.MultiPathResNet, "inner", {"inner": ()}),
        (rnr.MultiPathResNet, "inner", {"inner": (0.5,)}),
        (rnr.MultiPathResNet, "inner", {"inner": (1.0, 0.5)}),
        (rnr.MultiPathResNet, "inner", {"inner": ("half", "full")}),
        (rnr.MultiPathResNet, "inner", {"inner": (float("nan"), 1.0)}),
        (rnr.MultiPathResNet, "inner", {"inner": 1.0}),
        (rnr.ChannelPrunedNet, "groups", {"groups": 0}),
        (rnr.ChannelPrunedNet, "groups", {"groups": 2.0}),
        (rnr.ChannelPrunedNet, "groups", {"groups": 3}),
        (rnr.ChannelPrunedNet, "style", {"style": "dense"}),
        (rnr.ChannelPrunedNet, "style", {"style": ["vgg"]}),
    ],
    ids=shown,
)
def test_kinds_of_backbone_reject(kind, argument, kwargs):
    rejects(argument, lambda: kind(**{**NETWORK, **kwargs}))


BAD_IMAGES = [
    np.zeros((2, 1, 8, 8), np.uint8),
    [[0]],
    None,
    torch.zeros(2, 1, 8, 9),
    torch.zeros(1, 8, 8),
    torch.zeros(2, 1, 8, 8, dtype=torch.int64),
    torch.full((2, 1, 8, 8), 255.0),
    torch.full((2, 1, 8, 8), -1.0),
    torch.full((2, 1, 8, 8), float("nan")),
    torch.full((2, 1, 8, 8), float("inf")),
]


@pytest.mark.parametrize("images", BAD_IMAGES, ids=shown)
def test_traversal_rejects_images(backbone, images):
    rejects("images", lambda: rnr.Traversal.start(backbone, images))


@pytest.mark.parametrize("exits", [[9], [-1], 3, ["0"], [[0]], [1]], ids=shown)
def test_traversal_rejects_exits(exits):
    backbone = small.backbone("whitened")
    images = torch.zeros(2, *backbone.image_shape, dtype=torch.uint8)
    rejects("exits", lambda: rnr.Traversal.start(backbone, images, exits))


BAD_SUB_PATHS = [[1], [1.0, 1.0], [-1, 1], [9, 1], None, "11", np.array([[1, 1]])]


@pytest.mark.parametrize("sub_paths", BAD_SUB_PATHS, ids=shown)
@pytest.mark.parametrize("kind", ["live", "table"])
def test_step_rejects_sub_paths(kind, sub_paths, backbone, images, request):
    state = sources(backbone, images)[kind].start(np.arange(2))
    rejects("sub_paths", lambda: state.step(sub_paths))


def sources(backbone, images):
    spec = rnr.RoutingSpec.of(backbone)
    from rnr_gym.routing import route_table

    table = route_table.build(backbone, images, spec, progress=False)
    return {"live": Live(backbone, images, spec), "table": table}


@pytest.fixture
def table(backbone, images):
    return sources(backbone, images)["table"]


NO_TRADEOFFS = [HUGE, 1j, "0.3", None, -1, float("nan"), True, (0.1, 0.3), np.array([0.1])]
BAD_TRADEOFFS = [*NO_TRADEOFFS, 5]


@pytest.mark.parametrize("tradeoff", NO_TRADEOFFS, ids=shown)
@pytest.mark.parametrize("method", ["returns", "oracle", "regret"])
def test_table_rejects_tradeoff(table, method, tradeoff):
    args = [np.repeat(table.paths[:1], len(table.labels), 0)] if method == "regret" else []
    rejects("tradeoff", lambda: getattr(table, method)(*args, tradeoff))


@pytest.mark.parametrize("tradeoff", BAD_TRADEOFFS, ids=shown)
def test_evaluate_rejects_tradeoff(table, tradeoff):
    router = SimpleNamespace(predict=lambda *_: None)
    rejects("tradeoff", lambda: rnr.evaluate(table, router, tradeoff))


@pytest.mark.parametrize(
    ("argument", "paths"),
    [
        ("paths", []),
        ("paths", [[]]),
        ("paths", np.zeros((2, 3), np.int8)),
        ("paths", np.zeros((24, 3), np.float32)),
        ("sub_paths", np.full((24, 3), -1, np.int8)),
        ("paths", np.full((24, 3), 9, np.int8)),
    ],
    ids=shown,
)
def test_evaluate_paths_rejects(table, argument, paths):
    num_layers = table.spec.num_layers
    if np.ndim(paths) == 2 and np.shape(paths)[1] == 3:
        paths = np.resize(paths, (len(paths), num_layers)).astype(paths.dtype)
    rejects(argument, lambda: rnr.evaluate_paths(table, paths))


@pytest.fixture
def classifier(backbone):
    return rnr.RoutedClassifier(backbone, SimpleNamespace(predict=predict_full(backbone)))


def predict_full(backbone):
    return lambda observation, *_, **__: (np.full(len(observation), backbone.full_path), None)


@pytest.mark.parametrize("images", BAD_IMAGES, ids=shown)
def test_classifier_rejects_images(classifier, images):
    rejects("images", lambda: classifier(images))


@pytest.mark.parametrize("tradeoff", BAD_TRADEOFFS, ids=shown)
def test_classifier_rejects_tradeoff(backbone, classifier, tradeoff):
    if tradeoff is None:
        pytest.skip("that is the plain network")
    images = torch.zeros(2, *backbone.image_shape, dtype=torch.uint8)
    rejects("tradeoff", lambda: classifier(images, tradeoff=tradeoff))


@pytest.mark.parametrize("compute", ["half", 1j, True, float("nan"), 0.0, HUGE], ids=shown)
def test_classifier_rejects_compute(backbone, classifier, compute):
    from rnr_gym.classifier import BudgetCurve

    classifier.curve = BudgetCurve([0.1, 1.0], [0.9, 0.1])
    images = torch.zeros(2, *backbone.image_shape, dtype=torch.uint8)
    rejects("compute", lambda: classifier(images, compute=compute))


@pytest.mark.parametrize(
    ("argument", "args", "kwargs"),
    [
        ("pretrained_model_name_or_path", ("missing/folder/here",), {}),
        ("pretrained_model_name_or_path", ("rnr cifar",), {}),
        ("pretrained_model_name_or_path", (5,), {}),
        ("weights", ("rnr-cifar10",), {"weights": "best"}),
        ("weights", ("rnr-cifar10",), {"weights": ["pretrained"]}),
        ("agent", ("rnr-cifar10",), {"agent": "fqi"}),
        ("agent", ("rnr-cifar10",), {"agent": ["ppo"]}),
        ("device", ("rnr-cifar10",), {"device": "meta"}),
        ("dtype", ("rnr-cifar10",), {"dtype": "half"}),
    ],
    ids=shown,
)
def test_from_pretrained_rejects(argument, args, kwargs):
    rejects(argument, lambda: rnr.RoutedClassifier.from_pretrained(*args, **kwargs))


@pytest.mark.parametrize(
    ("argument", "kwargs"),
    [
        ("agents", {"names": []}),
        ("agent", {"names": ["sarsa"]}),
        ("agents", {"names": ["full", "full"]}),
        ("agents", {"names": "full"}),
        ("agent", {"names": [["full"]]}),
        ("seeds", {"seeds": 0}),
        ("seeds", {"seeds": 1.0}),
        ("jobs", {"jobs": -1}),
        ("jobs", {"jobs": "2"}),
    ],
    ids=shown,
)
def test_compare_rejects(tmp_path, argument, kwargs):
    arguments = {"names": ["full"], "seeds": 1, "jobs": 1, **kwargs}
    fit_config = rnr.FitConfig(ENV)
    rejects(argument, lambda: compare(fit_config, report_dir=tmp_path / "out", **arguments))
    assert snapshot(tmp_path) == {}


@pytest.mark.parametrize("agent", ["sarsa", ["ppo"], None, 3], ids=shown)
def test_fit_run_rejects_agent(tmp_path, agent):
    rejects("agent", lambda: rnr.fit_run(agent, rnr.FitConfig(ENV), tmp_path / "out"))
    assert snapshot(tmp_path) == {}


def test_fit_config_takes_numpy_numbers_and_paths(tmp_path):
    """As users have them; a run is written with Python's own types."""
    kwargs = {"weights": tmp_path / "file"}
    fit_config = rnr.FitConfig(ENV, kwargs, seed=np.int64(3), steps=np.int32(512))
    assert type(fit_config.seed) is int
    assert type(fit_config.steps) is int
    assert fit_config.kwargs == {"weights": str(tmp_path / "file")}


def test_run_of_own_table_is_refused(table, tmp_path):
    """It could not be opened again."""
    fit_config = rnr.FitConfig(ENV, {"backend": table})
    rejects("kwargs", lambda: rnr.fit_run("full", fit_config, tmp_path / "out"))
    assert snapshot(tmp_path) == {}


@pytest.mark.parametrize("run_dir", [None, 3, ["runs"]], ids=shown)
def test_runs_reject_what_is_no_path(run_dir):
    rejects("run_dir", lambda: rnr.load_run(run_dir))
    rejects("run_dir", lambda: rnr.fit_run("full", rnr.FitConfig(ENV), run_dir))


@pytest.mark.parametrize(
    "image_idx", [[], [10**6] * 24, [0.5] * 24, [[0]], "0"], ids=lambda value: str(value)[:10]
)
def test_evaluate_paths_rejects_images(table, image_idx):
    paths = np.repeat(table.paths[:1], 24, 0)
    with pytest.raises(ValueError, match=r"`image_idx` must|`paths` must"):
        rnr.evaluate_paths(table, paths, image_idx=image_idx)
