"""Parquet files: a record is a row, a block is a run of row groups."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from configs.errors import DataError
from data_prep.config import SourceConfig
from data_prep.documents import Block, Counts, Document
from data_prep.readers.base import READERS, Reader, file_size

if TYPE_CHECKING:
    import pyarrow as pa

_ROWS = 256
_BATCH_BYTES = 8 << 20
"""Rows and bytes (by the mean of their row group) decoded at a time."""
_BUFFER = 1 << 20
"""Bytes of a column read at a time, so that memory does not grow with the row group."""


@READERS.add("parquet")
class ParquetReader(Reader):
    """``.parquet``; only the text column and a string column ``id``, if there is one, are read.

    ``Block.start`` and ``stop`` count row groups. A record without an id gets its row number.
    """

    endings = (".parquet",)

    def __init__(self, source: SourceConfig, index: int) -> None:
        super().__init__(source, index)
        import pyarrow as pa
        import pyarrow.parquet as pq

        file_size(self.path)
        try:
            with pq.ParquetFile(self.path) as file:
                schema: pa.Schema = file.schema_arrow
                groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
                self._rows = [int(group.num_rows) for group in groups]
                self._bytes = [int(group.total_byte_size) for group in groups]
        except (pa.ArrowException, OSError) as error:
            raise DataError(
                f"{self.path} is not a complete Parquet file ({' '.join(str(error).split())[:200]}). "
                "Fetch or write it again."
            ) from None
        for column in source.text_columns:
            if schema.names.count(column) != 1:
                raise DataError(
                    f"{self.path} has no column {column!r} (it has {', '.join(schema.names[:20])}): "
                    "set `text_column` of this source."
                )
            if not _is_text(schema.field(column).type):
                raise DataError(
                    f"{self.path}: the column {column!r} holds {schema.field(column).type}, not text: "
                    "set `text_column` of this source to a column of strings."
                )
        has_id = schema.names.count("id") == 1 and _is_text(schema.field("id").type)
        self._columns = list(dict.fromkeys([*source.text_columns, *(["id"] if has_id else [])]))

    def blocks(self, block_bytes: int) -> list[Block]:
        blocks, start, held = [], 0, 0
        for group, size in enumerate(self._bytes):
            held += size
            if held >= block_bytes:
                blocks.append(Block(self.index, self.path, start, group + 1))
                start, held = group + 1, 0
        if start < len(self._bytes):
            blocks.append(Block(self.index, self.path, start, len(self._bytes)))
        return blocks

    def documents(self, block: Block, counts: Counts) -> Iterator[Document]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        stop = len(self._rows) if block.stop is None else block.stop
        firsts = [0, *accumulate(self._rows)]
        with pq.ParquetFile(self.path, buffer_size=_BUFFER, pre_buffer=False) as file:
            for group in range(block.start, stop):
                row, end = firsts[group], firsts[group + 1]
                rows = max(1, min(_ROWS, _BATCH_BYTES * (end - row) // max(1, self._bytes[group])))
                try:
                    for batch in file.iter_batches(rows, row_groups=[group], columns=self._columns):
                        for record in _records(batch):
                            document = self._document(
                                record, row, counts, self.source.text_column, self.source.encoding
                            )
                            row += 1
                            if document is not None:
                                yield document
                except (pa.ArrowException, OSError):
                    # The rest of a row group whose pages are damaged; the other groups may be sound.
                    counts["dropped_damaged_rows"] += end - row


def _is_text(type_: pa.DataType) -> bool:
    import pyarrow as pa

    if pa.types.is_dictionary(type_):
        return _is_text(type_.value_type)
    kinds = (pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(), pa.null())
    return type_ in kinds


def _records(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    try:
        rows: list[dict[str, Any]] = batch.to_pylist()
        return rows
    except UnicodeDecodeError:  # Parquet does not promise that its strings are UTF-8
        pass
    columns = {
        name: [_value(item) for item in batch.column(position)] for position, name in enumerate(batch.schema.names)
    }
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _value(item: Any) -> Any:
    try:
        return item.as_py()
    except UnicodeDecodeError:
        return item.as_buffer().to_pybytes() if hasattr(item, "as_buffer") else b"\xff"
