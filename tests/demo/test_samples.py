"""Samples: as many of each difficulty, and none where there are no images."""

import pytest

from rnr_gym import data
from rnr_gym.demo import samples


@pytest.fixture
def cifar(small_cifar):
    return data.load("cifar10", "test")


def test_samples_run_from_easy_to_hard(contest, cifar):
    chosen = samples.choose(cifar, contest.backbone)
    expected = [name for name in samples.DIFFICULTIES for _ in range(samples.EACH)]
    assert [sample.difficulty for sample in chosen] == expected


def test_glance_is_surer_of_easier_samples(contest, cifar):
    confidence = samples._confidence(cifar, contest.backbone)
    names = [image.tobytes() for image in cifar.images]
    confidence_of = dict(zip(names, confidence, strict=True))

    groups = {name: [] for name in samples.DIFFICULTIES}
    for sample in samples.choose(cifar, contest.backbone):
        groups[sample.difficulty].append(confidence_of[sample.image.tobytes()])
    assert min(groups["easy"]) >= max(groups["medium"])
    assert min(groups["medium"]) >= max(groups["hard"])


def test_samples_know_their_class(contest, cifar):
    names = [image.tobytes() for image in cifar.images]
    label_of = dict(zip(names, cifar.labels, strict=True))
    for sample in samples.choose(cifar, contest.backbone):
        assert sample.label == label_of[sample.image.tobytes()]
        assert sample.caption.startswith(cifar.classes[sample.label])


def test_same_seed_gives_same_samples(contest, cifar):
    captions = []
    for seed in (0, 0, 1):
        chosen = samples.choose(cifar, contest.backbone, seed)
        captions.append([sample.caption for sample in chosen])
    assert captions[0] == captions[1]
    assert captions[0] != captions[2]


def test_load_finds_images(contest, cifar):
    assert len(samples.load(contest.backbone)) == len(samples.DIFFICULTIES) * samples.EACH


def test_load_without_images_gives_none(contest, tmp_path):
    assert samples.load(contest.backbone, str(tmp_path)) == []


def test_load_of_other_folders_raises(contest, tmp_path):
    (tmp_path / "cifar10" / "test" / "ant").mkdir(parents=True)
    with pytest.raises(ValueError, match="must have the 10 class folders"):
        samples.load(contest.backbone, str(tmp_path))
