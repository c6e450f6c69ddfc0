"""Alternating between backbone and router: what each round leaves, resuming, and refusals."""

import json

import pytest
import torch

from rnr_gym import storage
from rnr_gym.agents import FitConfig
from rnr_gym.backbones import weights, zoo
from rnr_gym.classifier import CONFIG_FILE, RoutedClassifier
from rnr_gym.experiments import finetuning, runs
from rnr_gym.experiments.finetuning import alternate, round_dir, schedule_for
from rnr_gym.experiments.pretraining import pretrain_backbone
from rnr_gym.experiments.retrieval import embed_gallery
from tests.fixtures.digits import ENV, use_few_digits
from tests.fixtures.files import snapshot
from tests.fixtures.small import same_weights


@pytest.fixture(autouse=True)
def _few_digits(monkeypatch):
    use_few_digits(monkeypatch)


@pytest.fixture
def run_dir(tmp_path):
    """A rule that is fitted at once."""
    runs.fit("thresholds", FitConfig(ENV, progress=False), tmp_path / "run")
    return tmp_path / "run"


def backbone_of(folder):
    return zoo.load(folder / "backbone.safetensors")


def test_every_round_leaves_backbone_and_router_fitted_to_it(run_dir, tmp_path):
    out = tmp_path / "out"
    assert alternate(run_dir, out, rounds=2, epochs=1, glance_epochs=0) == round_dir(out, 2)
    assert sorted(path.name for path in out.iterdir()) == [CONFIG_FILE, "round-1", "round-2"]

    first = backbone_of(round_dir(out, 1))
    second = backbone_of(round_dir(out, 2))
    assert not same_weights(first, zoo.named("rnr-digits"))
    assert not same_weights(first, second)
    for number, backbone in [(1, first), (2, second)]:
        classifier = RoutedClassifier.from_run(round_dir(out, number) / "run")
        assert classifier.agent == "thresholds"
        assert same_weights(classifier.backbone, backbone)


def test_glance_stays_and_shared_backbone_too(run_dir, tmp_path):
    before = {name: tensor.clone() for name, tensor in zoo.named("rnr-digits").state_dict().items()}
    folder = alternate(run_dir, tmp_path / "out", rounds=1, epochs=1, glance_epochs=0)
    for name, tensor in zoo.named("rnr-digits").state_dict().items():
        assert torch.equal(tensor, before[name])
    for name, parameter in backbone_of(folder).glance.named_parameters():
        assert torch.equal(parameter, before[f"glance.{name}"])


def test_glance_learns_in_the_first_round_alone(run_dir, tmp_path):
    out = tmp_path / "out"
    alternate(run_dir, out, rounds=2, epochs=1, glance_epochs=1)
    before = zoo.named("rnr-digits").glance.state_dict()
    glances = [backbone_of(round_dir(out, number)).glance.state_dict() for number in (1, 2)]
    for name, _ in zoo.named("rnr-digits").glance.named_parameters():
        assert not torch.equal(glances[0][name], before[name])
        assert torch.equal(glances[1][name], glances[0][name])


def test_file_says_how_it_was_made(run_dir, tmp_path):
    folder = alternate(run_dir, tmp_path / "out", rounds=1, epochs=1, glance_epochs=0)
    _, metadata = weights.read(folder / "backbone.safetensors")
    assert metadata["env"] == ENV
    assert metadata["finetuned_under"] == "thresholds"
    assert metadata["schedule"]["epochs"] == 1
    assert metadata["schedule"]["glance_epochs"] == 0
    accuracy = metadata["full_path_accuracy_on_route"]
    assert accuracy.keys() == {"before", "after"}
    assert all(0.5 < value <= 1.0 for value in accuracy.values())


def test_interrupted_alternation_does_nothing_twice(run_dir, tmp_path, monkeypatch):
    expected = alternate(run_dir, tmp_path / "whole", rounds=2, epochs=1, glance_epochs=0)
    finished = []
    train_backbone = finetuning.train_backbone

    def counted(run, path, *args):
        if len(finished) == 1:
            finished.append("interrupted")
            raise KeyboardInterrupt
        train_backbone(run, path, *args)
        finished.append(path.parent.name)

    monkeypatch.setattr(finetuning, "train_backbone", counted)
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        alternate(run_dir, out, rounds=2, epochs=1, glance_epochs=0)
    folder = alternate(run_dir, out, rounds=2, epochs=1, glance_epochs=0)
    assert finished == ["round-1", "interrupted", "round-2"]
    assert same_weights(backbone_of(folder), backbone_of(expected))


def test_finished_alternation_is_kept(run_dir, tmp_path):
    out = tmp_path / "out"
    alternate(run_dir, out, rounds=1, epochs=1, glance_epochs=0)
    before = snapshot(out)
    with pytest.raises(FileExistsError, match="which is finished"):
        alternate(run_dir, out, rounds=1, epochs=1, glance_epochs=0)
    assert snapshot(out) == before


def test_other_settings_are_refused(run_dir, tmp_path):
    out = tmp_path / "out"
    alternate(run_dir, out, rounds=1, epochs=1, glance_epochs=0)
    before = snapshot(out)
    with pytest.raises(ValueError, match="where rounds, schedule differ"):
        alternate(run_dir, out, rounds=2, epochs=2, glance_epochs=0)
    assert snapshot(out) == before


def test_run_that_is_unfinished_is_refused(tmp_path):
    (tmp_path / "run").mkdir()
    storage.save_json(tmp_path / "run" / CONFIG_FILE, {})
    with pytest.raises(FileNotFoundError, match="which is unfinished"):
        alternate(tmp_path / "run", tmp_path / "out", rounds=1, epochs=1, glance_epochs=0)
    assert not (tmp_path / "out").exists()


def test_schedule_is_that_of_pretraining_but_gentler(run_dir):
    schedule = schedule_for(runs.load(run_dir), epochs=3, glance_epochs=5)
    assert schedule.batch_size == zoo.ARCHITECTURES["rnr-digits"].schedule["batch_size"]
    assert (schedule.epochs, schedule.glance_epochs) == (3, 5)
    assert schedule.path_rate < 0.1


def test_schedule_follows_from_that_of_pretraining(run_dir):
    schedule = schedule_for(runs.load(run_dir), epochs=None, glance_epochs=None)
    assert (schedule.epochs, schedule.glance_epochs) == (30, 900)


def test_config_is_json(run_dir, tmp_path):
    alternate(run_dir, tmp_path / "out", rounds=1, epochs=1, glance_epochs=0)
    config = json.loads((tmp_path / "out" / CONFIG_FILE).read_text())
    assert config.keys() == {"router", "rounds", "schedule"}
    assert config["router"]["agent"] == "thresholds"


def test_backbone_that_retrieves_is_refused(tmp_path):
    embed_gallery(ENV, tmp_path / "file", per_class=5, further=0, dimensions=4)
    fit_config = FitConfig(ENV, {"weights": tmp_path / "file"}, progress=False)
    runs.fit("thresholds", fit_config, tmp_path / "run")
    with pytest.raises(ValueError, match="must route a backbone that classifies"):
        alternate(tmp_path / "run", tmp_path / "out", rounds=1, epochs=1, glance_epochs=0)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("env", ["RNR-ImageNet-v0", "RNR-ImageNet-Channels-v0"])
def test_weights_of_torchvision_are_neither_trained_nor_embedded(env, tmp_path):
    for write in (pretrain_backbone, embed_gallery):
        with pytest.raises(ValueError, match="`env` must route a network of this package"):
            write(env, tmp_path / "file", {} if write is pretrain_backbone else 1)
    assert not list(tmp_path.iterdir())
