"""Class folders of images: what is read from them, what is kept in the cache, what is refused."""

import errno
import os

import numpy as np
import pytest
from PIL import Image
from safetensors import SafetensorError

from rnr_gym import storage
from rnr_gym.data import folders
from tests.fixtures import photos

CLASSES = ("ant", "bee", "cat")
SIDE = (8, 6)


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    """An empty cache folder."""
    monkeypatch.setenv("RNR_GYM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def contents():
    """Five pictures of each class in `train`, two in `test`."""
    return {
        name: photos.part(len(CLASSES), each, SIDE, seed=each)
        for name, each in (("train", 5), ("test", 2))
    }


@pytest.fixture
def folder(tmp_path, contents):
    """The same on disk."""
    return photos.write_folders(tmp_path / "animals", contents, CLASSES)


def load(folder, part="train", classes=CLASSES):
    return folders.load(folder, part, classes, SIDE)


def no_decoding(patch):
    patch.setattr(folders, "_pixels", lambda file, side: pytest.fail(f"{file} was decoded"))


def assert_same(one, other):
    for ours, theirs in zip(one, other, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def kept(cache):
    """Names of all that the cache holds."""
    return sorted(file.name for file in cache.rglob("*") if file.is_file())


@pytest.mark.parametrize("part", ["train", "test"])
def test_images_come_by_class_and_then_by_file_name(folder, contents, part):
    images, labels = load(folder, part)
    pixels, wanted = contents[part]
    order = np.argsort(wanted, kind="stable")
    assert (images.dtype, labels.dtype) == (np.uint8, np.int64)
    np.testing.assert_array_equal(labels, wanted[order])
    np.testing.assert_array_equal(images, pixels[order])


def test_labels_follow_the_classes_asked_for_and_not_the_alphabet(folder):
    images, labels = load(folder, classes=CLASSES[::-1])
    others, _ = load(folder)
    assert labels.tolist() == [0] * 5 + [1] * 5 + [2] * 5
    np.testing.assert_array_equal(images[:5], others[10:])


@pytest.mark.parametrize(
    ("suffix", "mode"),
    [
        ("jpg", "RGB"),
        ("jpg", "L"),
        *((suffix, mode) for suffix in ("png", "webp") for mode in ("RGB", "L", "P", "RGBA")),
    ],
)
def test_pictures_of_any_kind_are_read_as_rgb(tmp_path, suffix, mode):
    rows, columns = np.mgrid[: SIDE[0], : SIDE[1]]
    smooth = Image.fromarray(
        np.stack([20 * rows, 20 * columns, 10 * rows + 10 * columns], 2).astype(np.uint8)
    ).convert(mode)
    file = tmp_path / f"picture.{suffix}"
    smooth.save(file)
    pixels = folders._pixels(file, SIDE)
    assert pixels.shape == (3, *SIDE)
    lossy = 0 if suffix == "png" else 25
    assert (
        np.abs(pixels.astype(int) - np.asarray(smooth.convert("RGB")).transpose(2, 0, 1)).mean()
        <= lossy
    )


def test_a_second_load_reads_the_cache(folder, monkeypatch, cache):
    first = load(folder)
    assert len(kept(cache)) == 1
    no_decoding(monkeypatch)
    assert_same(load(folder), first)


def test_parts_and_sides_are_kept_apart(folder, cache):
    load(folder, "train")
    load(folder, "test")
    with pytest.raises(ValueError, match="8 x 6"):
        folders.load(folder, "test", CLASSES, (6, 8))
    assert len(kept(cache)) == 2


def rewritten(folder):
    Image.new("RGB", SIDE[::-1], "red").save(next((folder / "train" / "ant").iterdir()))


def added(folder):
    Image.new("RGB", SIDE[::-1], "red").save(folder / "train" / "ant" / "0.png")


def removed(folder):
    next((folder / "train" / "ant").iterdir()).unlink()


def moved(folder):
    file = next((folder / "train" / "ant").iterdir())
    file.rename(folder / "train" / "bee" / file.name)


@pytest.mark.parametrize("change", [rewritten, added, removed, moved])
def test_what_changed_on_disk_is_decoded_anew(folder, cache, change):
    images, labels = load(folder)
    before = kept(cache)
    change(folder)
    again, relabelled = load(folder)
    assert (
        images.shape != again.shape
        or not np.array_equal(images, again)
        or not np.array_equal(labels, relabelled)
    )
    assert len(kept(cache)) == 2
    assert set(before) < set(kept(cache))


def test_the_cache_keeps_its_value_where_the_images_were_copied_with_their_times(
    folder, tmp_path, monkeypatch
):
    first = load(folder)
    (tmp_path / "elsewhere").mkdir()
    no_decoding(monkeypatch)
    assert_same(load(folder.rename(tmp_path / "elsewhere" / "animals")), first)


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: whole[:-50],
        lambda whole: whole[:20],
        lambda whole: b"",
        lambda whole: b"text" * 100,
    ],
)
def test_a_damaged_cache_file_is_decoded_again_and_mended(folder, cache, damage, monkeypatch):
    first = load(folder)
    (file,) = cache.rglob("*.safetensors")
    file.write_bytes(damage(file.read_bytes()))
    assert_same(load(folder), first)
    no_decoding(monkeypatch)
    assert_same(load(folder), first)


def spoilt_png(file):
    file.write_bytes(file.read_bytes()[:-60])


def beheaded_png(file):
    whole = bytearray(file.read_bytes())
    whole[8:12] = b"\0\0\0\7"  # a header of 7 bytes instead of 13
    file.write_bytes(whole)


def cut_jpeg(file):
    Image.effect_noise((32, 32), 50).save(file, "JPEG")
    file.write_bytes(file.read_bytes()[:300])


def claims_to_be_huge(file):
    Image.new("RGB", (2, 2)).save(file, "BMP")
    whole = bytearray(file.read_bytes())
    whole[18:26] = (60_000).to_bytes(4, "little") * 2
    file.write_bytes(whole)


def is_text(file):
    file.write_text("<html>not found</html>")


def is_empty(file):
    file.write_bytes(b"")


def is_a_folder(file):
    file.unlink()
    file.mkdir()


@pytest.mark.parametrize(
    "damage",
    [spoilt_png, beheaded_png, cut_jpeg, claims_to_be_huge, is_text, is_empty, is_a_folder],
)
def test_a_damaged_image_is_named_and_nothing_is_kept(folder, cache, damage):
    file = sorted((folder / "train" / "bee").iterdir())[2]
    damage(file)
    with pytest.raises(ValueError, match="`data_root` must hold readable images") as refused:
        load(folder)
    assert repr(str(file)) in str(refused.value)
    assert kept(cache) == []


@pytest.mark.parametrize("side", [(6, 8), (8, 7), (16, 12), (1, 1)])
def test_an_image_of_another_size_is_named(folder, cache, side):
    file = sorted((folder / "train" / "bee").iterdir())[2]
    Image.new("RGB", side[::-1]).save(file)
    with pytest.raises(
        ValueError,
        match=rf"`data_root` must hold images of 8 x 6 pixels, got '.*bee.*' of {side[0]} x {side[1]}",
    ):
        load(folder)
    assert kept(cache) == []


def test_classes_that_are_missing_or_unknown_are_named(folder):
    (folder / "train" / "bee").rename(folder / "train" / "wasp")
    with pytest.raises(
        ValueError,
        match=r"must have the 3 class folders of animals, got '.*train' \(missing: bee; unknown: wasp\)",
    ):
        load(folder)
    assert len(load(folder, "test")[1]) == 6


def test_files_beside_the_class_folders_do_not_matter(folder):
    (folder / "train" / "README.txt").write_text("three animals")
    assert len(load(folder)[1]) == 15


@pytest.mark.parametrize("part", ["train", "test"])
def test_a_part_that_is_missing_is_named(folder, part):
    (folder / part).rename(folder / "other")
    with pytest.raises(FileNotFoundError, match=f"`data_root` must hold animals/{part}"):
        load(folder, part)


def test_val_counts_as_test(folder, contents):
    whole = load(folder, "test")
    (folder / "test").rename(folder / "val")
    assert_same(load(folder, "test"), whole)


def test_a_class_may_be_empty_here(folder):
    for file in (folder / "train" / "bee").iterdir():
        file.unlink()
    assert np.bincount(load(folder)[1], minlength=3).tolist() == [5, 0, 5]


def assert_no_room(folder, cache):
    with pytest.raises(
        OSError, match="`RNR_GYM_CACHE` must name a folder with room for 0 MB of decoded images"
    ) as refused:
        load(folder)
    assert repr(str(cache / "images")) in str(refused.value)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("I/O error: No space left on device"),
    ],
    ids=repr,
)
def test_a_full_disk_is_reported_and_nothing_is_left(folder, cache, monkeypatch, error):
    def full(tensors, path, metadata):
        path.write_bytes(b"half")
        raise error

    monkeypatch.setattr(storage, "save_file", full)
    assert_no_room(folder, cache)
    assert kept(cache) == []
    monkeypatch.undo()
    assert len(load(folder)[1]) == 15


def test_a_file_that_may_grow_no_further_is_reported_and_nothing_is_left(folder, cache):
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        assert_no_room(folder, cache)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert kept(cache) == []


def test_a_cache_folder_that_cannot_be_is_reported(folder, cache):
    cache.write_text("a file")
    assert_no_room(folder, cache)


@pytest.mark.parametrize(
    ("given", "named", "expected"),
    [
        ("~/given", "named", "HOME/given"),
        ("given", None, "given"),
        (None, "~/named", "HOME/named"),
        ("", "named", "named"),
        (None, None, "CACHE/data"),
    ],
)
def test_images_are_looked_for_where_the_argument_says_else_the_variable_else_in_the_cache(
    monkeypatch, cache, given, named, expected
):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("RNR_GYM_DATA", named or "")
    assert os.fspath(folders.data_folder(given)) == expected.replace("HOME", "/home/me").replace(
        "CACHE", str(cache)
    )
    if named is None:
        monkeypatch.delenv("RNR_GYM_DATA")
        assert os.fspath(folders.data_folder(given)) == expected.replace("CACHE", str(cache))
