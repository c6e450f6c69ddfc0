"""A classifier as an ONNX file: the same answers, paths and costs, one image at a time."""

import logging

import numpy as np
import pytest
import torch

import rnr_gym as rnr
from rnr_gym import storage
from rnr_gym.agents import FitConfig, agent
from rnr_gym.backbones import zoo
from rnr_gym.backbones.channels import ChannelPrunedNet
from tests.fixtures.digits import use_few_digits
from tests.fixtures.files import snapshot

onnxruntime = pytest.importorskip("onnxruntime")

TRADEOFFS = (0.01, 0.05, 0.1, 0.3)
IMAGES = 60
CASES = [("RNR-Digits-v0", "ppo", True), ("RNR-Digits-Channels-v0", "dqn", False)]
"""Id, agent, and whether exits are on."""


def classifier_of(env, name, exits=True):
    """A classifier whose router decides at random, but by what it sees, so that paths differ."""
    kwargs = {} if exits else {"exits": False}
    fit_config = FitConfig(env, kwargs, steps=1024, progress=False)
    backbone = zoo.named(fit_config.source_kwargs("route")["backbone"])
    with pytest.MonkeyPatch.context() as patch:
        use_few_digits(patch)
        router = agent(name).fit(fit_config)
    if hasattr(router, "policy"):
        generator = torch.Generator().manual_seed(0)
        for parameter in router.policy.parameters():
            parameter.data.normal_(0.0, 1.0, generator=generator)
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


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case[0])
def exported(request, tmp_path_factory):
    """A classifier and the file that it was exported to."""
    classifier = classifier_of(*request.param)
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
    """float32 `(N, 1, 12, 12)`, 0..1."""
    return rnr.load_images("digits", "test").images[:IMAGES].astype(np.float32) / 255.0


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
    assert len(taken) > 4


def test_rejects_other_routers(tmp_path):
    classifier = classifier_of("RNR-Digits-v0", "confidence")
    with pytest.raises(ValueError, match="must have a router of Stable-Baselines3"):
        rnr.export_onnx(classifier, tmp_path / "routed.onnx")
    assert snapshot(tmp_path) == {}


def test_rejects_maps_of_changing_width(tmp_path):
    classifier = classifier_of("RNR-Digits-v0", "ppo")
    classifier.backbone = ChannelPrunedNet((1, 12, 12), 10, style="vgg", widths=(32,), blocks=(2,))
    with pytest.raises(ValueError, match="must have a backbone whose feature maps have one width"):
        rnr.export_onnx(classifier, tmp_path / "routed.onnx")


def test_rejects_other_suffix(tmp_path):
    with pytest.raises(ValueError, match=r"`path` must end in \.onnx"):
        rnr.export_onnx(classifier_of("RNR-Digits-v0", "ppo"), tmp_path / "routed.pt")
