"""A table as the bytes of a Parquet file, and back."""

import pyarrow as pa
import pyarrow.parquet as pq

FEW_ROWS = 1000


def to_bytes(table: pa.Table) -> bytes:
    """The file of a table: zstd where it has many rows."""
    sink = pa.BufferOutputStream()
    # A dictionary of numbers that are all different is work for nothing, and makes the file a third larger. To set up
    # zstd for each column takes longer than all else where there are few rows.
    compression = "zstd" if len(table) > FEW_ROWS else "snappy"
    pq.write_table(table, sink, compression=compression, use_dictionary=_columns_of_words(table.schema))
    content: bytes = sink.getvalue().to_pybytes()
    return content


def from_bytes(content: bytes) -> pa.Table:
    """The table of a file. Raises pa.ArrowException or OSError where it holds none."""
    # A pool of threads takes longer to wake than one thread to read some kilobytes.
    return pq.ParquetFile(pa.BufferReader(content)).read(use_threads=False)


def _columns_of_words(schema: pa.Schema) -> list[str]:
    """The columns of texts, and of lists of texts, by their paths in the file."""
    columns = [c.name for c in schema if pa.types.is_string(c.type) or pa.types.is_dictionary(c.type)]
    return columns + [f"{c.name}.list.element" for c in schema if c.type.equals(pa.list_(pa.string()))]
