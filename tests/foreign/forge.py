"""Files that claim what they do not hold, and hold what they do not claim."""

import collections
import io
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch._utils import _rebuild_tensor_v2


def pickled(tensors):
    """What torch pickles of a mapping of tensors; each is (numbers in its storage, shape, strides)."""

    class Storage:
        def __init__(self, numbers):
            self.numbers = numbers

    class OfTensor:
        def __init__(self, numbers, *rest):
            self.rest = Storage(numbers), 0, *rest, False, collections.OrderedDict()

        def __reduce__(self):
            return _rebuild_tensor_v2, self.rest

    class Pickler(pickle.Pickler):
        def persistent_id(self, content):
            if isinstance(content, Storage):
                return ("storage", torch.FloatStorage, "0", "cpu", content.numbers)

    buffer = io.BytesIO()
    content = {name: OfTensor(*each) if isinstance(each, tuple) else each for name, each in tensors.items()}
    Pickler(buffer, 2).dump(content)
    return buffer.getvalue()


def of_footer(data, values=None, rows=None):
    """A Parquet file with one footer that claims other numbers of values or of rows."""
    start = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    metadata = pq.read_metadata(io.BytesIO(data))
    footer = data[start:-8]
    if values is not None:
        # num_values (5) follows path_in_schema and codec (4), and total_uncompressed_size (6) follows it.
        old = b"\x16" + varint(metadata.row_group(0).column(0).num_values) + b"\x16"
        assert footer.count(old) >= 1
        footer = footer.replace(old, b"\x16" + varint(values) + b"\x16", 1)
    if rows is not None:
        # num_rows (3) of the file follows the schema, before the list of row groups (4).
        old = b"\x16" + varint(metadata.num_rows) + b"\x19"
        assert footer.count(old) == 1
        footer = footer.replace(old, b"\x16" + varint(rows) + b"\x19")
    return data[:start] + footer + len(footer).to_bytes(4, "little") + b"PAR1"


def of_pages(size, names=("anchor", "candidate", "epoch", "score")):
    """A Parquet file of columns of zeros, of which the footer claims few rows and bytes, and the pages hold all."""
    rows = size // 8
    buffer = io.BytesIO()
    schema = pa.schema([(name, pa.float64() if name == "score" else pa.int64()) for name in names])
    with pq.ParquetWriter(buffer, schema, compression="zstd", use_dictionary=False, **one_page(rows)) as writer:
        kinds = {name: schema.field(name).type.to_pandas_dtype() for name in names}
        writer.write_table(pa.table({name: np.zeros(rows, kind) for name, kind in kinds.items()}), row_group_size=rows)
    return understated(buffer.getvalue(), 1000)


def one_page(rows):
    """What makes Arrow write a column of so many rows as one page."""
    whole = {"data_page_size": 2**31 - 1, "max_rows_per_page": rows, "write_batch_size": rows}
    return {**whole, "write_statistics": False}


def understated(data, rows=None, claimed=1000):
    """A Parquet file whose footer claims so few bytes of each column and, unless they are None, rows of each group."""
    start = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    metadata = pq.read_metadata(io.BytesIO(data))
    footer = data[start:-8]
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        if rows is not None:
            footer = footer.replace(varint(group.num_rows), varint(rows))
        footer = footer.replace(varint(group.total_byte_size), varint(claimed))
        for column in map(group.column, range(group.num_columns)):
            footer = footer.replace(varint(column.total_uncompressed_size), varint(claimed))
    if rows is not None:
        footer = footer.replace(varint(metadata.num_rows), varint(rows * metadata.num_row_groups))
    return data[:start] + footer + len(footer).to_bytes(4, "little") + b"PAR1"


def varint(number):
    """A whole number as Thrift's compact form writes it."""
    number, out = number << 1, bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])
