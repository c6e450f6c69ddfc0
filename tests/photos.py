"""Small stand-ins for CIFAR on disk: class folders of pictures, and torchvision's files with checksums of their own."""

import hashlib
import pickle
import tarfile

import numpy as np
from PIL import Image
from torchvision import datasets

from rnr_gym.data import cifar

EACH = {"train": 20, "test": 3}
"""Pictures of each class, by part."""


def part(classes, each, side=(32, 32), seed=0):
    """Random pictures uint8 `(N, 3, H, W)` and labels `(N,)`, every class equally often, in no order."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(classes * each) % classes)
    return rng.integers(0, 256, (len(labels), 3, *side), dtype=np.uint8), labels


def parts(classes=10, each=EACH, seed=0):
    """Both parts of a data set, by name."""
    return {name: part(classes, count, seed=seed + number) for number, (name, count) in enumerate(each.items())}


def write_folders(folder, contents, classes=cifar.TEN, suffix="png"):
    """`<folder>/<part>/<class>/*`; file names follow the order of the pictures."""
    for name, (images, labels) in contents.items():
        for label in range(len(classes)):
            (folder / name / classes[label]).mkdir(parents=True)
        for row, (image, label) in enumerate(zip(images, labels, strict=True)):
            Image.fromarray(image.transpose(1, 2, 0)).save(folder / name / classes[label] / f"{row:05d}.{suffix}")
    return folder


def write_official(root, contents, patch, title="CIFAR10"):
    """torchvision's files in `root`; by `patch` it expects these very ones."""
    reader = getattr(datasets, title)
    folder = root / reader.base_folder
    folder.mkdir(parents=True)
    labels_are = "labels" if title == "CIFAR10" else "fine_labels"
    for part_name, (images, labels) in contents.items():
        files = [name for name, _ in getattr(reader, f"{part_name}_list")]
        checked = []
        for name, rows in zip(files, np.array_split(np.arange(len(labels)), len(files)), strict=True):
            checked.append([name, _pickled(folder / name, {"data": images[rows].reshape(len(rows), -1), labels_are: labels[rows].tolist()})])
        patch.setattr(reader, f"{part_name}_list", checked)
    names = {reader.meta["key"]: list(cifar.TEN if title == "CIFAR10" else cifar.HUNDRED)}
    patch.setattr(reader, "meta", reader.meta | {"md5": _pickled(folder / reader.meta["filename"], names)})
    return folder


def write_archive(file, folder, patch, title="CIFAR10"):
    """A folder as the archive that torchvision fetches; by `patch` it expects this very one."""
    with tarfile.open(file, "w:gz") as archive:
        archive.add(folder, folder.name)
    patch.setattr(getattr(datasets, title), "tgz_md5", _md5(file))
    return file


def _pickled(file, content):
    file.write_bytes(pickle.dumps(content, protocol=2))
    return _md5(file)


def _md5(file):
    return hashlib.md5(file.read_bytes()).hexdigest()
