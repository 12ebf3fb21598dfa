"""Files of some kilobytes that unpack to gigabytes are refused, within a bound of memory."""

import io
import json
import struct
import subprocess
import sys
import tarfile
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from foreign.forge import one_page, understated
from foreign.measured import MEASURED
from PIL import Image

from falseneg.data import Parquet, Shards
from falseneg.data.image_set import encode_labels
from falseneg.detectors import Neighbours
from falseneg.errors import UserError

MOST = 2**30
"""Bytes of memory that refusing a file may take, beside what the program takes without it."""

PROGRAM = (
    MEASURED
    + """
import json, sys
import pyarrow.parquet, torch
from falseneg.data import Parquet, Shards
from falseneg.data.decoding import decode
from falseneg.detectors import Neighbours
from falseneg.errors import UserError

def image(path):
    return decode(open(path, "rb").read(), path)

def shards(path):
    images = Shards(path, label="name")
    return [images.encoded(row) for row in range(len(images))]

before = begin()
message = None
try:
    {"Parquet": Parquet, "Neighbours": Neighbours, "image": image, "shards": shards}[sys.argv[1]](sys.argv[2])
except UserError as error:
    message = str(error)
print(json.dumps([message, taken(before)]))
"""
)


def refused(kind, path):
    """The sentence with which a file is refused, in a process of its own, and the memory that took."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, kind, str(path)], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    message, memory = json.loads(done.stdout)
    assert memory < MOST, f"{memory / 2**20:,.0f} MiB"
    assert message is not None, "it was taken"
    return message


def repeated(path, value, times, struct=False, **columns):
    """One value in every row, stored once."""
    values = pa.array([value], pa.binary() if isinstance(value, bytes) else pa.string())
    with pq.ParquetWriter(
        path, _schema(struct, columns), compression="zstd", dictionary_pagesize_limit=2**30
    ) as writer:
        for _ in range(times // 256):
            array = pa.array([0] * 256, pa.int32())
            array = pa.DictionaryArray.from_arrays(array, values).dictionary_decode()
            image = pa.StructArray.from_arrays([array], ["bytes"]) if struct else array
            arrays = [image, *(pa.array([name] * 256) for name in columns.values())]
            writer.write_table(pa.table(dict(zip(["image", *columns], arrays, strict=True))))


def _schema(struct, columns):
    kind = pa.struct([("bytes", pa.binary())]) if struct else pa.binary()
    return pa.schema([("image", kind), *((name, pa.string()) for name in columns)])


@pytest.mark.parametrize("struct", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_parquet_images_that_repeat_a_value(tmp_path, struct):
    path = tmp_path / "a.parquet"
    repeated(path, bytes(2**20), 4096, struct)
    assert path.stat().st_size < 36_000
    message = refused("Parquet", path)
    assert "column 'image" in message and "unpacks to more than 256 MiB" in message


@pytest.mark.slow
def test_parquet_labels_that_repeat_a_value(tmp_path):
    path = tmp_path / "a.parquet"
    repeated(path, b"image", 4096, label="x" * 2**20)
    assert path.stat().st_size < 100_000
    assert "column 'label'" in refused("Parquet", path)


@pytest.mark.slow
@pytest.mark.parametrize("lists", [False, True])
def test_parquet_captions_that_repeat_a_value(tmp_path, lists):
    path = tmp_path / "a.parquet"
    kind = pa.list_(pa.string()) if lists else pa.string()
    schema = pa.schema([("image", pa.binary()), ("caption", kind)])
    with pq.ParquetWriter(path, schema, compression="zstd", dictionary_pagesize_limit=2**30) as writer:
        for _ in range(16):
            texts = ["x" * 2**20] * 256
            writer.write_table(
                pa.table({"image": [b"i"] * 256, "caption": pa.array([[t] for t in texts] if lists else texts, kind)})
            )
    assert path.stat().st_size < 100_000
    message = refused("Parquet", path)
    assert "the column 'caption' of " in message and "unpacks to more than 256 MiB" in message


@pytest.mark.slow
def test_parquet_of_zeros_that_tells_its_size(tmp_path):
    path = tmp_path / "a.parquet"
    with pq.ParquetWriter(path, _schema(False, {}), compression="zstd", use_dictionary=False) as writer:
        for _ in range(8):
            writer.write_table(pa.table({"image": pa.array([bytes(2**27)] * 2, pa.binary())}))
    assert "unpacks to more than 256 MiB" in refused("Parquet", path)


def test_parquet_of_zeros_whose_footer_understates_them(tmp_path):
    path, buffer = tmp_path / "a.parquet", io.BytesIO()
    table = pa.table({"image": pa.array([bytes(2**20)] * 1536, pa.binary())})
    pq.write_table(table, buffer, compression="zstd", use_dictionary=False, **one_page(1536))
    path.write_bytes(understated(buffer.getvalue()))
    assert pq.read_metadata(path).row_group(0).column(0).total_uncompressed_size == 1000
    assert "unpacks to more than 256 MiB" in refused("Parquet", path)


@pytest.mark.slow
def test_parquet_of_many_empty_rows(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": pa.nulls(30_000_000, pa.binary())}), path)
    assert "unpacks to more than 256 MiB" in refused("Parquet", path)


@pytest.mark.slow
def test_neighbours_that_repeat_a_pair(tmp_path):
    path = tmp_path / "a.parquet"
    pairs = np.zeros(40_000_000, dtype=np.int64)
    pq.write_table(pa.table({"anchor": pairs, "candidate": pairs}), path, compression="zstd")
    assert "unpacks to more than 256 MiB" in refused("Neighbours", path)


@pytest.mark.parametrize(
    ("side", "colour"), [(50_000, 6), (13_000, 3), pytest.param(13_000, 6, marks=pytest.mark.slow)]
)
def test_png_of_too_many_pixels(tmp_path, png, side, colour):
    line = bytes(1 + side * (4 if colour == 6 else 1))
    pack = zlib.compressobj(9)
    data = b"".join(pack.compress(line) for _ in range(side if side < 50_000 else 10)) + pack.flush()
    header = struct.pack(">IIBBBBB", side, side, 8, colour, 0, 0, 0)
    chunks = [(b"IHDR", header), *([(b"PLTE", bytes(3)), (b"tRNS", b"\0")] if colour == 3 else []), (b"IDAT", data)]
    with open(tmp_path / "a.png", "wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        for kind, content in [*chunks, (b"IEND", b"")]:
            file.write(struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content)))
    assert "a.png claims too many pixels to be decoded safely" in refused("image", tmp_path / "a.png")


@pytest.mark.slow
@pytest.mark.parametrize("form", ["JPEG", "WEBP", "GIF", "TIFF"])
def test_other_images_of_too_many_pixels(tmp_path, encode, form):
    """The size stands in the header, which is changed to claim what the file does not hold."""
    side = 16_000 if form == "WEBP" else 13_000
    data = bytearray(encode(Image.new("RGB", (16, 16)), form, **({"lossless": True} if form == "WEBP" else {})))
    if form == "JPEG":
        place = data.index(b"\xff\xc0") + 5
        data[place : place + 4] = struct.pack(">HH", side, side)
    elif form == "GIF":
        data[6:10] = struct.pack("<HH", side, side)
    elif form == "WEBP":
        place = data.index(b"VP8L") + 9
        data[place : place + 4] = struct.pack("<I", (side - 1) | (side - 1) << 14)
    else:
        image = Image.open(io.BytesIO(data))
        for tag in (256, 257):
            place = data.index(struct.pack("<HHI", tag, image.tag_v2.tagtype[tag], 1)) + 8
            data[place : place + 4] = struct.pack("<I", side)
    path = tmp_path / "a.img"
    path.write_bytes(data)
    assert "claims too many pixels to be decoded safely" in refused("image", path)


@pytest.mark.slow
def test_the_largest_image_is_decoded_within_the_stated_memory(tmp_path, encode):
    path = tmp_path / "a.png"
    path.write_bytes(encode(Image.new("RGBA", (8192, 8192), (1, 2, 3, 4)), compress_level=1))
    program = PROGRAM.replace("message = None", 'message = ""')
    done = subprocess.run(
        [sys.executable, "-c", program, "image", str(path)], capture_output=True, text=True, check=True
    )
    message, memory = json.loads(done.stdout)
    assert message == "" and memory < 1.5 * MOST


def tar_of(path, *members):
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for name, data, kind, _size in members:
            info = tarfile.TarInfo(name)
            info.size, info.type = len(data), kind
            tar.addfile(info, io.BytesIO(data))
    whole = bytearray(path.read_bytes())
    place = 0
    for _name, data, _kind, size in members:
        if size is not None:
            header = whole[place : place + 512]
            header[124:136] = b"\x80" + size.to_bytes(11, "big")
            header[148:156] = b" " * 8
            header[148:156] = b"%06o\0 " % sum(header)
            whole[place : place + 512] = header
        place += 512 + -(-len(data) // 512) * 512
    path.write_bytes(whole)


@pytest.mark.slow
@pytest.mark.parametrize("size", [2**33, 2**70])
@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_members_that_claim_more_than_the_tar_holds(tmp_path, kind, size, encode, picture):
    path = tmp_path / "a.tar"
    image = encode(picture())
    tar_of(path, ("1.png", image, tarfile.REGTYPE, None), ("2.png", image, kind, size))
    assert "a.tar cannot be read as a tar file" in refused("shards", path)


@pytest.mark.parametrize("name", ["1.png", "1.json"])
def test_members_with_holes(tmp_path, name, encode, picture):
    """The old form of a sparse file: where its pieces stand, and how long it is with the holes between them."""
    path = tmp_path / "a.tar"
    tar_of(path, ("1.png", encode(picture()), tarfile.REGTYPE, None), (name, b"{}", tarfile.REGTYPE, None))
    whole = bytearray(path.read_bytes())
    place = whole.rindex(name.encode())
    header = whole[place : place + 512]
    header[156:157] = tarfile.GNUTYPE_SPARSE
    header[386:410] = b"%011o\0" % 0 + b"%011o\0" % 2
    header[483:495] = b"%011o\0" % (6 * 2**30)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    whole[place : place + 512] = header
    path.write_bytes(whole)
    assert "is not stored whole" in refused("shards", path)


def test_a_cut_tar_is_refused(tmp_path, encode, picture):
    path = tmp_path / "a.tar"
    tar_of(path, ("1.png", encode(picture()), tarfile.REGTYPE, None), ("2.png", bytes(3000), tarfile.REGTYPE, None))
    path.write_bytes(path.read_bytes()[:2500])
    with pytest.raises(UserError, match=r"a\.tar cannot be read as a tar file"):
        Shards(str(path))


def test_repetitions_that_a_file_does_not_tell_are_unpacked_and_kept(tmp_path, own_cache, monkeypatch, encode, picture):
    import falseneg.data.arrow_column as module

    path = tmp_path / "a.parquet"
    image = encode(picture())
    repeated(path, image, 512)
    monkeypatch.setattr(module, "IN_MEMORY", 100 * len(image))
    images = Parquet(str(path))
    assert len(images) == 512 and images.encoded(511) == image and len(list(own_cache.iterdir())) == 1


def test_labels_that_are_no_labels(tmp_path, encode, picture):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": [encode(picture())], "label": [["a"]]}), path)
    with pytest.raises(UserError, match="column 'label' of .* holds list<.*>, not labels"):
        Parquet(str(path))


@pytest.mark.parametrize("value", [float("inf"), "1" * 5000, np.datetime64("2020-01-01", "D").astype(object)])
def test_labels_that_are_odd_are_names(value):
    assert encode_labels([value, "x"])[1] == tuple(sorted([str(value), "x"]))


def test_few_pairs_are_read(tmp_path):
    pq.write_table(pa.table({"anchor": [0, 1], "candidate": [1, 0]}), tmp_path / "a.parquet")
    assert Neighbours(tmp_path / "a.parquet").highest == 1
