import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """No test reads or writes the user's cache."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder / "falseneg"


@pytest.fixture
def encode():
    """A picture or array as the bytes of an image file."""

    def _encode(picture, form="PNG", **options):
        if not isinstance(picture, Image.Image):
            picture = Image.fromarray(np.asarray(picture))
        stream = io.BytesIO()
        picture.save(stream, form, **options)
        return stream.getvalue()

    return _encode


@pytest.fixture
def picture():
    """Arrays (H, W, 3) that differ by number."""

    def _picture(number=0, height=6, width=9):
        return np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)

    return _picture


@pytest.fixture
def png():
    """A PNG file from its header fields and raw lines: kinds that Pillow reads but does not write."""

    def _png(width, height, depth, colour, lines=b""):
        def chunk(kind, data):
            return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

        header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
        return (
            b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
        )

    return _png


@pytest.fixture
def write_images(encode, picture):
    """Write a different PNG, or the given bytes, under each name."""

    def _write(root: Path, *names, data=None):
        for number, name in enumerate(names):
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode(picture(number)) if data is None else data)

    return _write


@pytest.fixture
def forget_format(monkeypatch):
    """Have Pillow forget a format, as if it had been built without it or nobody had registered it."""

    def _forget(name):
        Image.init()
        monkeypatch.setattr(Image, "OPEN", {known: how for known, how in Image.OPEN.items() if known != name})
        monkeypatch.setattr(Image, "ID", [known for known in Image.ID if known != name])

    return _forget
