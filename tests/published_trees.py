"""Small trees in the true form of each transfer set, annotation files included."""

import json
import pickle

import numpy as np
from PIL import Image
from scipy.io import savemat

CLASSES = 3
SIDE = 12


class Pictures:
    """Pictures whose mean colour tells their class."""

    def __init__(self):
        self.rng = np.random.default_rng(0)

    def pixels(self, label, height=SIDE, width=SIDE):
        colour = np.array([[220, 30, 30], [30, 220, 30], [30, 30, 220]])[label % 3]
        return np.clip(colour + self.rng.integers(-25, 26, (height, width, 3)), 0, 255).astype(np.uint8)

    def write(self, path, label):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(self.pixels(label, SIDE, SIDE + 5)).save(path)


def lines(path, texts):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{text}\n" for text in texts))


def food101(root, draw, per_class):
    for split in ("train", "test"):
        names = {f"dish_{c}": [f"dish_{c}/{split}{i}" for i in range(per_class)] for c in range(CLASSES)}
        for label, (_, each) in enumerate(names.items()):
            for name in each:
                draw.write(root / "food-101/images" / f"{name}.jpg", label)
        lines(root / f"food-101/meta/{split}.json", [json.dumps(names)])


def _pickled(path, **fields):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(fields, protocol=2))


def _rows(draw, labels):
    return np.stack([draw.pixels(label, 32, 32).transpose(2, 0, 1).ravel() for label in labels])


def cifar10(root, draw, per_class):
    labels = list(range(CLASSES)) * per_class
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        _pickled(root / "cifar-10-batches-py" / name, data=_rows(draw, labels), labels=labels)
    _pickled(root / "cifar-10-batches-py/batches.meta", label_names=[f"class {i}" for i in range(10)])


def cifar100(root, draw, per_class):
    labels = list(range(CLASSES)) * per_class
    for name in ("train", "test"):
        fields = {"fine_labels": labels, "coarse_labels": labels}
        _pickled(root / "cifar-100-python" / name, data=_rows(draw, labels), **fields)
    _pickled(root / "cifar-100-python/meta", fine_label_names=[f"fine {i}" for i in range(100)])


def birdsnap(root, draw, per_class):
    for split in ("train", "test"):
        for label in range(CLASSES):
            for i in range(per_class):
                draw.write(root / "birdsnap" / split / f"species {label}" / f"{i}.jpg", label)


def sun397(root, draw, per_class):
    names = ["/a/abbey", "/a/apartment_building/outdoor", "/z/zen_garden"]
    lines(root / "SUN397/ClassName.txt", names)
    for split, listing in (("tr", "Training_01.txt"), ("te", "Testing_01.txt")):
        files = []
        for label, name in enumerate(names):
            for i in range(per_class):
                files.append(f"{name}/sun_{split}{i}.jpg")
                draw.write(root / "SUN397" / files[-1].lstrip("/"), label)
        lines(root / "SUN397" / listing, files)
    draw.write(root / "SUN397/a/abbey/sun_of_no_list.jpg", 0)


def stanford_cars(root, draw, per_class):
    base = root / "stanford_cars"
    (base / "devkit").mkdir(parents=True)
    kinds = [("bbox_x1", "O"), ("bbox_y1", "O"), ("bbox_x2", "O"), ("bbox_y2", "O"), ("class", "O"), ("fname", "O")]
    for split, path in (("train", "devkit/cars_train_annos.mat"), ("test", "cars_test_annos_withlabels.mat")):
        annotations = np.empty((1, CLASSES * per_class), dtype=kinds)
        for i in range(CLASSES * per_class):
            annotations[0, i] = (1, 1, 9, 9, i % CLASSES + 1, f"{i + 1:05d}.jpg")
            draw.write(base / f"cars_{split}" / f"{i + 1:05d}.jpg", i % CLASSES)
        savemat(base / path, {"annotations": annotations})
    names = np.empty((1, CLASSES), dtype="O")
    names[0] = [f"Maker Model {c} 2012" for c in range(CLASSES)]
    savemat(base / "devkit/cars_meta.mat", {"class_names": names})


def aircraft(root, draw, per_class):
    base = root / "fgvc-aircraft-2013b/data"
    names = ["707-320", "A300B4", "Boeing 717 of ours"]
    lines(base / "variants.txt", names)
    for number, split in enumerate(("train", "val", "test")):
        listed = []
        for label, name in enumerate(names):
            for i in range(per_class):
                image = f"{number}{label}{i:05d}"
                listed.append(f"{image} {name}")
                draw.write(base / "images" / f"{image}.jpg", label)
        lines(base / f"images_variant_{split}.txt", listed)


VOC = ("aeroplane", "bicycle", "tvmonitor")


def voc2007(root, draw, per_class):
    """The last image of a split also shows a difficult object of another class, and a plain one of its own twice."""
    base = root / "VOCdevkit/VOC2007"
    for number, split in enumerate(("train", "val", "test")):
        names = []
        for i in range(CLASSES * per_class):
            names.append(f"{number}{i:05d}")
            shown = [(VOC[i % CLASSES], 0)]
            if i == CLASSES * per_class - 1:
                shown += [(VOC[i % CLASSES], 1), (VOC[(i + 1) % CLASSES], 1)]
            box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
            objects = "".join(
                f"<object><name>{name}</name><pose>Left</pose><truncated>0</truncated><difficult>{hard}</difficult>{box}"
                "<part><name>head</name></part></object>"
                for name, hard in shown
            )
            size = f"<size><width>{SIDE + 5}</width><height>{SIDE}</height><depth>3</depth></size>"
            head = f"<folder>VOC2007</folder><filename>{names[-1]}.jpg</filename>{size}<segmented>0</segmented>"
            lines(base / "Annotations" / f"{names[-1]}.xml", [f"<annotation>{head}{objects}</annotation>"])
            draw.write(base / "JPEGImages" / f"{names[-1]}.jpg", i % CLASSES)
        lines(base / "ImageSets/Main" / f"{split}.txt", names)


def dtd(root, draw, per_class):
    for split in ("train", "val", "test"):
        names = []
        for label, name in enumerate(("banded", "blotchy", "zigzagged")):
            for i in range(per_class):
                names.append(f"{name}/{name}_{split}{i}.jpg")
                draw.write(root / "dtd/dtd/images" / names[-1], label)
        lines(root / f"dtd/dtd/labels/{split}1.txt", names)


def pets(root, draw, per_class):
    base = root / "oxford-iiit-pet"
    breeds = ["Abyssinian", "american_bulldog", "yorkshire_terrier"]
    for split in ("trainval", "test"):
        listed = []
        for label, breed in enumerate(breeds):
            for i in range(per_class):
                name = f"{breed}_{i + (100 if split == 'test' else 0)}"
                listed.append(f"{name} {label + 1} {1 if label == 0 else 2} 1")
                draw.write(base / "images" / f"{name}.jpg", label)
        lines(base / "annotations" / f"{split}.txt", listed)


def caltech101(root, draw, per_class):
    for label, name in enumerate(("BACKGROUND_Google", "Faces", "accordion")):
        for i in range(2 * per_class):
            draw.write(root / "caltech101/101_ObjectCategories" / name / f"image_{i + 1:04d}.jpg", label)


def flowers102(root, draw, per_class):
    base = root / "flowers-102"
    number = 3 * CLASSES * per_class
    labels = [i % CLASSES for i in range(number)]
    for i, label in enumerate(labels):
        draw.write(base / "jpg" / f"image_{i + 1:05d}.jpg", label)
    savemat(base / "imagelabels.mat", {"labels": np.array([labels]) + 1})
    ids = np.arange(1, number + 1).reshape(3, 1, -1)
    savemat(base / "setid.mat", {"trnid": ids[0], "valid": ids[1], "tstid": ids[2]})


TREES = {
    "Food101": food101,
    "CIFAR10": cifar10,
    "CIFAR100": cifar100,
    "Birdsnap": birdsnap,
    "SUN397": sun397,
    "StanfordCars": stanford_cars,
    "FGVCAircraft": aircraft,
    "VOC2007": voc2007,
    "DTD": dtd,
    "OxfordIIITPet": pets,
    "Caltech101": caltech101,
    "Flowers102": flowers102,
}
