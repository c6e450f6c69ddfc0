"""Image files, classified by a fitted router and by a bundled classifier."""

import numpy as np
import pytest
import torch
from PIL import Image

import rnr_gym as rnr
from rnr_gym.data import cifar
from rnr_gym.data.streaming import Crop
from rnr_gym.experiments.classification import TRADEOFF, _read, classify
from tests.fixtures.digits import ENV, use_few_digits


@pytest.fixture
def photo(tmp_path):
    """A PNG of noise in colour, 40 x 32 pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (32, 40, 3), dtype=np.uint8)
    path = tmp_path / "photo.png"
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def run_dir(tmp_path, monkeypatch):
    """The folder of a fitted router for grey digits."""
    use_few_digits(monkeypatch)
    rnr.fit_run("confidence", rnr.FitConfig(ENV, progress=False), tmp_path / "run")
    return tmp_path / "run"


def test_bundled_classifier_answers_the_central_part(photo):
    (answer,) = classify("rnr-cifar10", [photo])
    central = np.asarray(Image.open(photo))[:, 4:36].transpose(2, 0, 1)
    classifier = rnr.RoutedClassifier.from_pretrained("rnr-cifar10")
    routed = classifier(torch.from_numpy(central[None].copy()), tradeoff=TRADEOFF)

    probabilities = routed.logits[0].softmax(0)
    assert answer.name == cifar.CIFAR10.classes[int(probabilities.argmax())]
    assert answer.confidence == pytest.approx(float(probabilities.max()))
    assert answer.path == tuple(routed.path[0][routed.path[0] >= 0].tolist())
    assert answer.compute == pytest.approx(float(routed.compute[0]))
    assert answer.milliseconds > 0.0


def test_run_answers_grey_images_in_order(run_dir, tmp_path):
    digits = rnr.load_images("digits", "test")
    files = []
    for idx in range(3):
        files.append(tmp_path / f"{idx}.png")
        Image.fromarray(digits.images[idx, 0]).save(files[-1])
    answers = classify(str(run_dir), files, tradeoff=0.0)
    expected = rnr.RoutedClassifier.from_run(run_dir)(
        torch.from_numpy(digits.images[:3].copy()), tradeoff=0.0
    )
    assert [answer.file for answer in answers] == files
    assert [answer.name for answer in answers] == [
        str(i) for i in expected.logits.argmax(1).tolist()
    ]


def test_trade_off_moves_compute(photo):
    (cheap,) = classify("rnr-cifar10", [photo], tradeoff=4.0)
    (dear,) = classify("rnr-cifar10", [photo], tradeoff=0.0)
    assert cheap.compute < dear.compute


def test_half_precision_answers_almost_alike(photo):
    single = classify("rnr-cifar10", [photo])[0]
    half = classify("rnr-cifar10", [photo], dtype="bfloat16")[0]
    assert half.name == single.name
    assert 0.0 < abs(half.confidence - single.confidence) < 0.1


def test_saved_folder_has_numbers_for_names(photo, tmp_path):
    rnr.RoutedClassifier.from_pretrained("rnr-cifar10").save_pretrained(tmp_path / "saved")
    (named,) = classify("rnr-cifar10", [photo])
    (numbered,) = classify(str(tmp_path / "saved"), [photo])
    assert cifar.CIFAR10.classes[int(numbered.name)] == named.name


def test_rejects_what_is_no_image(photo, tmp_path):
    text = tmp_path / "text.png"
    text.write_text("not an image")
    with pytest.raises(ValueError, match=r"`images` must be image files, got '.*text\.png': This"):
        classify("rnr-cifar10", [photo, text])
    with pytest.raises(FileNotFoundError, match=r"`images` must be files, got '.*nowhere\.png'"):
        classify("rnr-cifar10", [photo, tmp_path / "nowhere.png"])
    with pytest.raises(ValueError, match="`images` must name at least one file"):
        classify("rnr-cifar10", [])
    with pytest.raises(ValueError, match="exclude each other"):
        classify("rnr-cifar10", [photo], compute=0.3, tradeoff=0.1)


def test_photographs_are_cropped_as_the_weights_expect(photo):
    crop = Crop(size=8, resize=16, interpolation="bilinear")
    batch = _read(photo, (3, 8, 8), crop)
    assert batch.shape == (1, 3, 8, 8)
    np.testing.assert_array_equal(batch[0].numpy(), crop(Image.open(photo)))
