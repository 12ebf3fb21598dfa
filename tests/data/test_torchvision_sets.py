import gzip
import pickle
import struct

import numpy as np
import pytest
import torch
import torchvision.datasets

from falseneg.data import Cifar10, Cifar100, Torchvision
from falseneg.data.torchvision_sets import CLASSIFICATION_SETS
from falseneg.errors import UserError

PER_BATCH = 4


@pytest.fixture
def trusting(monkeypatch):
    """Our small files have other checksums than the published ones: only their presence is checked."""

    def present(path, md5=None):
        import os

        return os.path.isfile(path)

    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", present)


@pytest.fixture
def cifar_root(tmp_path, trusting):
    """CIFAR-10 and CIFAR-100 in the form in which they are published, with a few images."""
    rng = np.random.default_rng(0)

    def write(path, **fields):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(pickle.dumps(fields, protocol=2))

    def batch(**labels):
        return {"data": rng.integers(0, 256, (PER_BATCH, 3072), dtype=np.uint8), **labels}

    ten = tmp_path / "cifar-10-batches-py"
    for number, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        write(ten / name, **batch(labels=[number, 9, 0, 3]))
    write(ten / "batches.meta", label_names=[f"class {i}" for i in range(10)])
    hundred = tmp_path / "cifar-100-python"
    for name in ("train", "test"):
        write(hundred / name, **batch(fine_labels=[99, 0, 5, 5], coarse_labels=[1, 1, 1, 1]))
    write(hundred / "meta", fine_label_names=[f"fine {i}" for i in range(100)])
    return tmp_path


def test_cifar10_from_its_pickles(cifar_root):
    cifar = Cifar10(str(cifar_root))
    assert len(cifar) == 5 * PER_BATCH
    assert cifar.labels.tolist()[:8] == [0, 9, 0, 3, 1, 9, 0, 3] and cifar.class_names[9] == "class 9"
    stored = pickle.loads((cifar_root / "cifar-10-batches-py/data_batch_2").read_bytes())["data"][1]
    image, row, label = cifar[5]
    assert (image.numpy() == stored.reshape(3, 32, 32)).all() and (row, label) == (5, 9)
    assert len(cifar.encoded(5)) == cifar.encoded_size(5) == 3072
    test = cifar.test_set()
    assert len(test) == PER_BATCH and test.labels.tolist() == [5, 9, 0, 3] and test.test_set() is None


def test_cifar100_has_fine_labels(cifar_root):
    cifar = Cifar100(str(cifar_root))
    assert cifar.labels.tolist() == [99, 0, 5, 5] and cifar.class_names[5] == "fine 5"
    assert len(cifar.test_set()) == PER_BATCH


@pytest.mark.parametrize("build", [Cifar10, Cifar100, lambda root: Torchvision("STL10", root)])
def test_missing_set_names_the_flag_and_downloads_nothing(tmp_path, monkeypatch, build):
    import urllib.request

    def refuse(*_, **__):
        pytest.fail("went to the network without being asked")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    with pytest.raises(UserError, match=r"is not in .*, or download it with --data\.download true$") as caught:
        build(str(tmp_path / "data"))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "data").exists()


def test_download_that_fails_is_one_sentence(tmp_path, monkeypatch):
    import urllib.error
    import urllib.request

    def offline(*_, **__):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    with pytest.raises(UserError, match=r"CIFAR10 cannot be downloaded into .*no route to host"):
        Cifar10(str(tmp_path), download=True)


def test_damaged_set_counts_as_missing(cifar_root):
    (cifar_root / "cifar-10-batches-py/data_batch_3").write_bytes(b"")
    with pytest.raises(UserError, match="or is incomplete"):
        Cifar10(str(cifar_root))


def write_idx(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    header = struct.pack(">HBB", 0, 8, array.ndim) + b"".join(struct.pack(">I", n) for n in array.shape)
    path.write_bytes(header + array.tobytes())
    with gzip.open(f"{path}.gz", "wb") as stream:
        stream.write(header + array.tobytes())


def test_mnist_from_its_own_format(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (5, 28, 28), dtype=np.uint8)
    for kind, count in (("train", 5), ("t10k", 2)):
        write_idx(tmp_path / f"MNIST/raw/{kind}-images-idx3-ubyte", images[:count])
        write_idx(tmp_path / f"MNIST/raw/{kind}-labels-idx1-ubyte", np.array([7, 1, 0, 3, 9], dtype=np.uint8)[:count])
    mnist = Torchvision("MNIST", str(tmp_path))
    assert len(mnist) == 5 and mnist.labels.tolist() == [7, 1, 0, 3, 9]
    assert torch.equal(mnist.image(2), torch.from_numpy(images[2]).expand(3, 28, 28))
    assert mnist.load(2).conversions == ("greyscale",)
    assert mnist[1][1:] == (1, 1) and mnist.class_names[7].startswith("7")
    assert len(mnist.test_set()) == 2 and mnist.test_set().test_set() is None


def test_set_of_folders_without_splits(tmp_path, write_images):
    write_images(tmp_path, "eurosat/2750/Forest/1.png", "eurosat/2750/River/1.png")
    eurosat = Torchvision("EuroSAT", str(tmp_path))
    assert eurosat.labels.tolist() == [0, 1] and eurosat.class_names == ("Forest", "River")
    assert eurosat.test_set() is None


def test_further_arguments():
    fake = Torchvision("FakeData", arguments={"size": 6, "image_size": [3, 12, 10], "num_classes": 3})
    assert len(fake) == 6 and fake.image(0).shape == (3, 12, 10)
    assert fake.labels.tolist() == [fake[row][2] for row in range(6)]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Torchvision("STL11"), r"set 'STL11' is unknown \(did you mean 'STL10'\?\)"),
        (lambda: Torchvision("CocoDetection"), "'CocoDetection' is unknown"),
        (lambda: Torchvision("STL10", split="tran"), r"split of STL10 'tran' is unknown \(did you mean 'train'\?\)"),
        (lambda: Torchvision("OxfordIIITPet"), r"split of OxfordIIITPet 'train' .*choose one of trainval, test"),
        (lambda: Torchvision("MNIST", split="val"), r"split of MNIST 'val' is unknown.*train, test"),
        (lambda: Cifar10(split="tets"), r"split 'tets' is unknown \(did you mean 'test'\?\)"),
        (lambda: Torchvision("FakeData", arguments={"sizes": 3}), r"'sizes' is unknown \(did you mean 'size'\?\)"),
        (
            lambda: Torchvision("EMNIST", arguments={"split": "digit"}),
            r"'digit' is unknown \(did you mean 'digits'\?\)",
        ),
        (lambda: Torchvision("ImageNet", download=True), "torchvision cannot download ImageNet"),
    ],
)
def test_mistyped_names(build, message):
    with pytest.raises(UserError, match=message):
        build()


def test_every_named_set_exists():
    assert all(hasattr(torchvision.datasets, name) for name in CLASSIFICATION_SETS)
