"""A classifier as an ONNX file: the same answers, paths and costs, one image at a time."""

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch

import rnr_gym as rnr
from rnr_gym import storage
from rnr_gym.agents import FitConfig, agent, sb3
from rnr_gym.onnx import RoutedNetwork
from rnr_gym.routing.preferences import action_scores
from tests.fixtures import offshelf, small
from tests.fixtures.files import snapshot
from tests.fixtures.profiles import profile_of
from tests.fixtures.routing import assert_near

onnxruntime = pytest.importorskip("onnxruntime")

TRADEOFFS = (0.003, 0.03, 0.3, 3.0)
IMAGES = 60
SHAPE = (3, 12, 12)
CASES = {
    "whitened, exits": ("whitened", "ppo", True, 2),
    "channels, no exits": ("residual", "ppo", False, 0),
}
"""Kind of backbone, agent, whether exits are on, and a seed with which paths differ."""


def classifier_of(kind, name, exits=True, seed=0):
    """A classifier of a small network."""
    return classifier_with(small.backbone(kind, shape=SHAPE), name, exits, seed)


def classifier_with(backbone, name, exits=True, seed=0, summary_scale=0.1):
    """A classifier whose router decides at random, but by what it sees, so that paths differ."""
    kwargs = {"backbone": backbone, "dataset": small.images(30, SHAPE), "exits": exits}
    with pytest.MonkeyPatch.context() as patch:
        if name in sb3.RECIPES:
            recipe = replace(sb3.RECIPES[name], summary_scale=summary_scale)
            patch.setitem(sb3.RECIPES, name, recipe)
        router = agent(name).fit(FitConfig("RNR-v0", kwargs, steps=1024, progress=False))
    if hasattr(router, "policy"):
        generator = torch.Generator().manual_seed(seed)
        for entry, parameter in router.policy.named_parameters():
            # Without biases, which would decide alone.
            std = 0.0 if entry.endswith("bias") else 1.0
            parameter.data.normal_(0.0, std, generator=generator)
    return rnr.RoutedClassifier(backbone, router, exits, agent=name)


def run_file(path, images, tradeoff):
    """Logits `(N, classes)`, paths `(N, T)` and MACs `(N,)`, image by image."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options)
    rows = []
    for image in images:
        feed = {"image": image[None], "tradeoff": np.array(tradeoff, np.float32)}
        rows.append(session.run(None, feed))
    logits, path, macs = zip(*rows, strict=True)
    return np.concatenate(logits), np.stack(path), np.concatenate(macs)


def test_network_off_the_shelf_is_refused(tmp_path):
    pixels = offshelf.pixels(10)
    labels = np.arange(10) % offshelf.CLASSES
    images = rnr.ImageSet.of((pixels * 255).byte().numpy(), labels)
    kwargs = {"backbone": offshelf.backbone("never seen"), "dataset": images}
    router = agent("ppo").fit(FitConfig("RNR-v0", kwargs, steps=1024, progress=False))
    classifier = rnr.RoutedClassifier(kwargs["backbone"], router, agent="ppo")
    with pytest.raises(ValueError, match="must have a backbone of this package"):
        rnr.export_onnx(classifier, tmp_path / "routed.onnx")


@pytest.fixture(scope="module", params=CASES)
def exported(request, tmp_path_factory):
    """A classifier and the file that it was exported to."""
    classifier = classifier_of(*CASES[request.param])
    path = tmp_path_factory.mktemp("exported") / "routed.onnx"
    before = storage.digest(classifier.backbone.state_dict())
    # Torch writes down all that it traces as long as somebody listens, as pytest does.
    logging.disable()
    assert rnr.export_onnx(classifier, path) == path
    logging.disable(logging.NOTSET)
    assert storage.digest(classifier.backbone.state_dict()) == before
    return classifier, path


@pytest.fixture(scope="module")
def images():
    """float32 `(N, C, H, W)`, 0..1, from dark to bright, so that not all go the same way."""
    noise = small.images(IMAGES, SHAPE, seed=1).images.astype(np.float32) / 255.0
    brightness = np.linspace(0.0, 1.0, IMAGES, dtype=np.float32)
    return noise**2 * brightness[:, None, None, None]


@pytest.mark.slow
def test_file_does_what_the_classifier_does(exported, images):
    classifier, path = exported
    taken = set()
    for tradeoff in TRADEOFFS:
        expected = classifier(torch.from_numpy(images), tradeoff=tradeoff)
        logits, paths, macs = run_file(path, images, tradeoff)
        assert np.array_equal(paths, expected.path)
        assert np.array_equal(macs, expected.macs)
        # Rounding: another library computes the convolutions.
        assert np.abs(logits - expected.logits.numpy()).max() < 1e-3
        taken |= set(map(bytes, expected.path))
    # Or the comparison would say little.
    assert len(taken) > 2


def branch_of(pred, true_fn, false_fn, operands=()):
    """`torch.cond` without tracing."""
    return true_fn(*operands) if pred else false_fn(*operands)


@pytest.mark.parametrize("summary_scale", [0.1, 0.0])
@pytest.mark.parametrize("groups", [0, 8])
@pytest.mark.parametrize("exits", small.EXITS)
@pytest.mark.parametrize("kind", ["multipath", "whitened", "residual"])
def test_what_is_exported_does_what_the_classifier_does(
    monkeypatch, images, kind, exits, groups, summary_scale
):
    """Before it is traced, which takes seconds for each."""
    monkeypatch.setattr(torch, "cond", branch_of)
    backbone = small.backbone(kind, exits, SHAPE, summary_groups=groups)
    classifier = classifier_with(backbone, "ppo", summary_scale=summary_scale)
    network = RoutedNetwork(classifier).eval()
    for tradeoff in TRADEOFFS:
        batch = torch.from_numpy(images[:12])
        expected = classifier(batch, tradeoff=tradeoff)
        with torch.no_grad():
            rows = [network(image[None], torch.tensor(tradeoff)) for image in batch]
        logits, path, macs = zip(*rows, strict=True)
        assert torch.stack(path).tolist() == expected.path.tolist()
        assert torch.cat(macs).tolist() == expected.macs.tolist()
        assert_near(torch.cat(logits), expected.logits)


def test_rejects_other_routers(tmp_path):
    classifier = classifier_of("multipath", "confidence")
    with pytest.raises(ValueError, match="must have a router of Stable-Baselines3"):
        rnr.export_onnx(classifier, tmp_path / "routed.onnx")
    assert snapshot(tmp_path) == {}


def test_rejects_router_that_was_fitted_under_time(tmp_path):
    classifier = classifier_of("multipath", "ppo")
    classifier.spec = classifier.spec.timed(profile_of(classifier.backbone).times)
    with pytest.raises(ValueError, match="must have a router that was fitted under MACs"):
        rnr.export_onnx(classifier, tmp_path / "routed.onnx")
    assert snapshot(tmp_path) == {}


def test_rejects_maps_of_changing_width(tmp_path):
    classifier = classifier_of("multipath", "ppo")
    classifier.backbone = small.backbone("vgg", shape=SHAPE)
    with pytest.raises(ValueError, match="must have a backbone whose feature maps have one width"):
        rnr.export_onnx(classifier, tmp_path / "routed.onnx")


def test_rejects_other_suffix(tmp_path):
    with pytest.raises(ValueError, match=r"`path` must end in \.onnx"):
        rnr.export_onnx(classifier_of("multipath", "ppo"), tmp_path / "routed.pt")


@pytest.mark.parametrize("name", ["ppo", "a2c", "dqn", "qr-dqn"])
def test_highest_score_is_the_action(name):
    router = classifier_of("multipath", name).router
    space = router.policy.observation_space
    obs = np.random.default_rng(0).uniform(0.0, 1.0, (50, *space.shape)).astype(np.float32)
    actions, _ = router.predict(obs)
    with torch.no_grad():
        chosen = action_scores(router.policy, torch.from_numpy(obs)).argmax(1)
    assert chosen.tolist() == actions.tolist()
    assert len(set(actions.tolist())) > 1
