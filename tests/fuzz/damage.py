"""Whole files of every kind that falseneg reads, and ways to damage them."""

import io
import json
import shutil
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from PIL import Image

FORMS = {"png": "PNG", "jpg": "JPEG", "webp": "WEBP", "gif": "GIF", "bmp": "BMP", "tif": "TIFF"}
ODD = (
    None,
    True,
    0,
    -1,
    3,
    10**30,
    2.5,
    float("nan"),
    float("inf"),
    "",
    "abc",
    "\ud800",
    [],
    {},
    [1, 2],
    [[1], {"a": 2}],
    {"a": 1},
    "a" * 3000,
)


def materials(folder):
    """A finished run with clusters, a comparison, and the same images in every form."""
    from falseneg.cli import main

    images, labels = [], []
    (folder / "images").mkdir(parents=True)
    for number in range(30):
        form = list(FORMS)[number % len(FORMS)]
        place = folder / "images" / f"class-{number % 3}"
        place.mkdir(exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (12, 14, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, FORMS[form])
        (place / f"{number}.{form}").write_bytes(buffer.getvalue())
        images.append(buffer.getvalue())
        labels.append(number % 3)
    pq.write_table(pa.table({"image": images, "label": labels}), folder / "images.parquet", row_group_size=10)
    with tarfile.open(folder / "images.tar", "w") as tar:
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            for name, data in (
                (f"{number}.{list(FORMS)[number % 6]}", image),
                (f"{number}.json", json.dumps({"name": label}).encode()),
            ):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    names = [str(path.relative_to(folder / "images")) for path in sorted((folder / "images").rglob("*.*"))]
    (folder / "list.csv").write_text(
        "path,label\n" + "".join(f"{name},{number % 3}\n" for number, name in enumerate(names))
    )
    pairs = np.array([[0, 1], [1, 0], [3, 6], [6, 3]], dtype=np.int64)
    pq.write_table(pa.table({"anchor": pairs[:, 0], "candidate": pairs[:, 1]}), folder / "pairs.parquet")
    np.save(folder / "pairs.npy", np.arange(30, dtype=np.int64)[:, None] % 5)
    detector = "{class_path: IncrementalClusters, init_args: {clusters: [3]}}"
    command = [
        "--data",
        "Folder",
        f"--data.root={folder / 'images'}",
        "--method.encoder.name=test_resnet",
        "--epochs=2",
    ]
    command += ["--accelerator=cpu", "--workers=0", "--batch-size=8"]
    for name, chosen in (("run", detector), ("thresholds", "{class_path: GlobalThreshold, init_args: {alpha: 0.2}}")):
        assert main(["pretrain", *command, f"--detector={chosen}", f"--out={folder / name}"]) == 0
    unfinished = folder / "thresholds" / "metrics.jsonl"  # so that --resume reads its checkpoint
    unfinished.write_text("".join(line for line in unfinished.read_text().splitlines(True) if '"final"' not in line))
    shutil.copy(folder / "run" / "encoder.safetensors", folder / "encoder.safetensors")
    (folder / "own.yaml").write_text((folder / "run" / "config.yaml").read_text())
    comparison(folder / "comparison", folder / "run")


def comparison(folder, run):
    """A comparison whose runs are all the same one."""
    from falseneg.compare.results import write_results

    records = []
    for variant in ("none", "mine", "oracle"):
        for seed in (0, 1):
            shutil.copytree(run, folder / "runs" / variant / f"seed-{seed}")
            record = {
                "variant": variant,
                "seed": seed,
                "knn": 0.4 + seed / 10,
                "linear": 0.5,
                "few_label": 0.3 + seed / 9,
                "few_label_sd": 0.01,
            }
            record |= {
                "test_images": 30,
                "seconds": 3.0,
                "seconds_per_epoch": 1.0,
                "peak_memory_mib": 90.0,
                "precision": 0.5,
                "recall": 0.5,
            }
            record |= {
                "f1": 0.5,
                "share_flagged": 0.1,
                "chance": 0.1,
                "epochs": 2,
                "epochs_to_baseline": 1,
                "seconds_to_baseline": 1.0,
            }
            record |= {
                "strategy": {"positive": 0.0, "negative": 0.0, "renormalise": False},
                "oracle": variant == "oracle",
            }
            records.append(record)
    write_results(folder, records, "few_label")


def commands(random, folder, file):
    """A command that reads the file."""
    common = [
        "--accelerator=cpu",
        "--workers=0",
        "--epochs=1",
        "--method.encoder.name=test_resnet",
        f"--out={folder / 'out'}",
    ]
    skip = ["--skip-unreadable=true"] * random.randrange(2)
    images = ["--data=Folder", f"--data.root={folder / 'images'}"]
    top = file.relative_to(folder).parts[0]
    if top == "images":
        return ["pretrain", *images, *common, *skip]
    if top == "images.parquet":
        return ["pretrain", "--data=Parquet", f"--data.path={file}", *common, *skip]
    if top == "images.tar":
        return [
            "pretrain",
            "--data=Shards",
            f"--data.path={file}",
            "--data.images=[png,jpg,webp,gif,bmp,tif]",
            "--data.label=name",
            *common,
            *skip,
        ]
    if top == "list.csv":
        return [
            "pretrain",
            "--data=FileList",
            f"--data.path={file}",
            f"--data.root={folder / 'images'}",
            *common,
            *skip,
        ]
    if top.startswith("pairs"):
        return ["pretrain", *images, "--detector=Neighbours", f"--detector.path={file}", *common]
    if top == "own.yaml":
        return ["pretrain", f"--config={file}", f"--out={folder / 'out'}"]
    if top == "encoder.safetensors":
        further = ["pretrain", *images, *common, f"--init-from={file}"]
        return random.choice(
            (
                ["evaluate", str(file), *images, "--workers=0", "--accelerator=cpu"],
                ["export", str(file), f"--out={folder / 'out.safetensors'}"],
                further,
            )
        )
    if top == "comparison":
        return ["report", str(folder / top)]
    run = folder / top
    resume = ["pretrain", "--resume", str(run)]
    evaluate = ["evaluate", str(run), "--accelerator=cpu", "--workers=0"]
    export = ["export", str(run), f"--out={folder / 'out.safetensors'}"]
    start = ["pretrain", *images, *common, f"--init-from={run}"]
    readers = {
        "config.yaml": [resume, evaluate],
        "run.json": [resume, ["report", str(run)]],
        "last.pt": [resume, start],
        "metrics.jsonl": [resume, ["report", str(run)]],
    }
    return random.choice(
        readers.get(
            file.name, [resume, evaluate, export, start] if file.suffix == ".safetensors" else [["report", str(run)]]
        )
    )


def damage(random, file, others):
    """Damage a file in place, by its bytes or by what it holds."""
    data = file.read_bytes()
    how = random.random()
    if how < 0.45 and (changed := _inside(random, file, data)) is not None:
        file.write_bytes(changed)
    elif how < 0.47:
        file.unlink()
    elif how < 0.49:
        file.unlink()
        file.mkdir()
    elif how < 0.54:
        file.write_bytes(random.choice(others).read_bytes())
    else:
        file.write_bytes(_bytes(random, data))


def _bytes(random, data):
    place = random.randrange(len(data) + 1)
    length = random.choice((1, 2, 8, 100, 1000))
    changed = bytearray(data)
    how = random.randrange(7)
    if how == 0:
        return data[:place]
    if how == 1:
        return data[:place] + random.randbytes(length) + data[place:]
    if how == 2:
        return data[:place] + data[place + length :]
    if how == 3:
        return data[:place] + bytes(len(data) - place)
    if how == 4:
        return random.choice((b"", b"\0", b"{}", b"[]", b"null", b"\xff\xfe", b"\x80abc", random.randbytes(length)))
    for _ in range(1 if how == 5 else max(1, len(data) // 50)):
        if changed:
            changed[random.randrange(len(changed))] = random.randrange(256)
    return bytes(changed)


def _inside(random, file, data):
    """What the file holds with one value of another kind; None for files that are only bytes."""
    if file.suffix in (".json", ".yaml"):
        content = yaml.safe_load(data) if file.suffix == ".yaml" else json.loads(data)
        content = _replaced(random, content)
        return (yaml.safe_dump(content, sort_keys=False) if file.suffix == ".yaml" else json.dumps(content)).encode(
            "utf-8", "surrogatepass"
        )
    if file.suffix == ".jsonl":
        lines = [json.loads(line) for line in data.splitlines()]
        place = random.randrange(len(lines))
        lines[place] = _replaced(random, lines[place])
        return "".join(json.dumps(line) + "\n" for line in lines).encode()
    if file.suffix == ".safetensors":
        return _header(random, data)
    buffer = io.BytesIO()
    if file.suffix == ".npz":
        with np.load(io.BytesIO(data)) as archive:
            arrays = dict(archive)
        name = random.choice(sorted(arrays))
        arrays[name] = _array(random, arrays[name])
        np.savez(buffer, **{key: array for key, array in arrays.items() if array is not None})
    elif file.suffix == ".npy":
        np.save(buffer, array if (array := _array(random, np.load(io.BytesIO(data)))) is not None else np.empty(0))
    elif file.suffix == ".parquet":
        table = pq.read_table(io.BytesIO(data))
        name = random.choice(table.column_names)
        column = random.choice(
            [
                pa.nulls(len(table)),
                pa.array([1.5] * len(table)),
                pa.array(["x"] * len(table)),
                pa.array([[1]] * len(table)),
                pa.array([-5] * len(table)),
                None,
            ]
        )
        table = table.drop_columns([name])
        pq.write_table(table if column is None else table.append_column(name, column), buffer)
    elif file.suffix == ".pt":
        torch.save(_replaced(random, torch.load(io.BytesIO(data), weights_only=False)), buffer)
    else:
        return None
    return buffer.getvalue()


def _header(random, data):
    """A safetensors file with one value of its header replaced, most often of what describes the encoder."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    about = header["__metadata__"]
    if random.random() < 0.7:
        about["falseneg.encoder"] = json.dumps(_replaced(random, json.loads(about["falseneg.encoder"])))
    else:
        header = _replaced(random, header)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[end:]


def _array(random, array):
    """An array of another type or shape; None for none."""
    how = random.randrange(8)
    if how == 0:
        return None
    if how == 1:
        return array[..., None]
    if how == 2:
        return array[:-1] if array.ndim else array
    if how == 3:
        return np.zeros(
            array.shape, dtype=random.choice((np.float64, np.int8, np.uint8, "U3", bool, np.complex64, "datetime64[s]"))
        )
    if how == 4:
        return np.full(array.shape, random.choice((np.nan, np.inf, -1e300)))
    if how == 5:
        return np.full(array.shape, random.choice((-1, 2**62, -(2**62))), dtype=np.int64)
    return np.array(3) if how == 6 else np.empty((0, *array.shape[1:]), dtype=array.dtype)


def _replaced(random, content):
    """The same with one value, at any depth, replaced, left out or put in."""
    if isinstance(content, dict) and content and random.random() < 0.9:
        key = random.choice(list(content))
        if random.random() < 0.15:
            return {name: each for name, each in content.items() if name != key}
        if random.random() < 0.05:
            return {**content, "unknown": random.choice(ODD)}
        return {name: _replaced(random, each) if name == key else each for name, each in content.items()}
    if isinstance(content, list) and content and random.random() < 0.8:
        place = random.randrange(len(content))
        return [_replaced(random, each) if index == place else each for index, each in enumerate(content)]
    if isinstance(content, torch.Tensor):
        return random.choice(
            (
                content.flatten()[:1],
                content.double(),
                content[None],
                torch.full_like(content, -1),
                torch.empty(0),
                None,
                3,
            )
        )
    return random.choice(ODD)
