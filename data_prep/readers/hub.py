"""Data sets of the Hugging Face library ``datasets``: from the hub, or from a local folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from configs import hub
from configs.errors import DataError
from data_prep.config import SourceConfig
from data_prep.documents import Block, Counts, Document
from data_prep.readers.base import READERS, Reader


@READERS.add("datasets")
class HubReader(Reader):
    """``kind: datasets``; a hub name is streamed (one block), a local folder is cut into ranges of records.

    Of a hub name it is the commit that stands behind its @; the launcher puts the newest there (launcher/pins.py).

    A local folder is either one written by ``save_to_disk`` or one that ``load_dataset`` reads.
    A record without a string ``id`` gets its number.
    """

    def __init__(self, source: SourceConfig, index: int) -> None:
        super().__init__(source, index)
        try:
            import datasets
        except ImportError:
            raise DataError(
                f"The source {source.path} is of kind `datasets`, which needs the package of that name: "
                "`pip install datasets`."
            ) from None
        folder = Path(source.path).expanduser()
        looks_local = source.path.startswith((".", "/", "~")) or folder.is_absolute()
        if looks_local and not folder.exists():
            raise DataError(f"There is no folder {source.path}: correct `path` under `data.sources`.")
        self._streamed = not folder.exists()
        try:
            self._data: Any = self._open(datasets, folder)
        except DataError:
            raise
        except Exception as error:
            # Of many kinds: the library's own and those of its storage layers.
            where = "the Hugging Face hub" if self._streamed else "the local folder"
            raise DataError(
                f"`datasets` cannot open {source.path} from {where} (name {source.name}, split "
                f"{source.split!r}): {type(error).__name__}: {' '.join(str(error).split())[:300]}. "
                "Correct `path`, `name` or `split` of this source."
            ) from None
        self._check_columns()

    def _open(self, datasets: Any, folder: Path) -> Any:
        source = self.source
        if self._streamed:
            name, commit = hub.split(source.path)
            return datasets.load_dataset(name, source.name, split=source.split, streaming=True, revision=commit)
        saved = (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()
        if not saved:
            return datasets.load_dataset(str(folder), source.name, split=source.split)
        data = datasets.load_from_disk(str(folder))
        if isinstance(data, datasets.DatasetDict):
            if source.split not in data:
                raise DataError(
                    f"{source.path} has no split {source.split!r} (it has {', '.join(map(str, data))}): "
                    "set `split` of this source."
                )
            data = data[source.split]
        return data

    def _check_columns(self) -> None:
        names = self._data.column_names  # None for a stream whose columns are known only once it is read
        if names is None:
            return
        for column in self.source.text_columns:
            if column not in names:
                raise DataError(
                    f"{self.path} has no column {column!r} (it has {', '.join(names[:20])}): "
                    "set `text_column` of this source."
                )
        # Other columns may hold images or audio, which would be decoded for nothing.
        wanted = list(dict.fromkeys([*self.source.text_columns, *(["id"] if "id" in names else [])]))
        self._data = self._data.select_columns(wanted)

    def blocks(self, block_bytes: int) -> list[Block]:
        if self._streamed:
            return [Block(self.index, self.path, 0, None)]
        n = len(self._data)
        # The size of the whole table, all columns: the text alone is not known without reading it.
        step = max(1, n * block_bytes // max(1, int(self._data.data.nbytes)))
        return [Block(self.index, self.path, i, min(i + step, n)) for i in range(0, n, step)]

    def documents(self, block: Block, counts: Counts) -> Iterator[Document]:
        if self._streamed:
            records: Any = self._stream()
        else:
            stop = len(self._data) if block.stop is None else block.stop
            records = self._data.select(range(block.start, stop))
        for number, record in enumerate(records, block.start):
            document = self._document(record, number, counts, self.source.text_column, self.source.encoding)
            if document is not None:
                yield document

    def _stream(self) -> Iterator[Any]:
        try:
            yield from self._data
        except Exception as error:
            raise DataError(
                f"The stream of {self.path} from the Hugging Face hub broke off: {type(error).__name__}: "
                f"{' '.join(str(error).split())[:300]}. Run the preparation again; finished parts are kept."
            ) from None
