"""Named arrays on disk, each a raw file that is appended to and read back whole or in parts."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

INDEX = "arrays.json"


class ArrayWriter:
    """Appends to arrays in a folder; they are there for `Arrays` when it was closed without an error.

    Args:
        folder: an existing folder, without arrays of these names.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[str, IO[bytes]] = {}
        self._index: dict[str, list[Any]] = {}

    def append(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Appends each array, (n, ...), to the one of its name; dtype and shape behind n stay those of the first."""
        for name, values in arrays.items():
            form = [values.dtype.str, list(values.shape[1:])]
            assert self._index.setdefault(name, form) == form, f"{name}: {form} behind {self._index[name]}"
            self._file(name).write(np.ascontiguousarray(values).data.cast("B") if values.size else b"")

    def absorb(self, folder: Path) -> None:
        """Appends all arrays of another folder, and removes it."""
        for name, form in json.loads((folder / INDEX).read_text()).items():
            assert self._index.setdefault(name, form) == form, f"{name}: {form} behind {self._index[name]}"
            with (folder / f"{name}.bin").open("rb") as file:
                shutil.copyfileobj(file, self._file(name), 1 << 20)
        shutil.rmtree(folder)

    def _file(self, name: str) -> IO[bytes]:
        if name not in self._files:
            self._files[name] = (self.folder / f"{name}.bin").open("wb")
        return self._files[name]

    def close(self) -> None:
        self._close_files()
        (self.folder / INDEX).write_text(json.dumps(self._index))

    def _close_files(self) -> None:
        files, self._files = self._files, {}
        for file in files.values():
            file.close()

    def __enter__(self) -> ArrayWriter:
        return self

    def __exit__(self, kind: Any, *rest: Any) -> None:
        if kind is None:
            self.close()
        else:
            self._close_files()


class Arrays(Mapping[str, np.ndarray]):
    """The arrays that an `ArrayWriter` left in a folder.

    They are read and not mapped into memory: pages of a map count as resident for as long as it lives.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._index = json.loads((folder / INDEX).read_text())

    def __iter__(self) -> Iterator[str]:
        return iter(self._index)

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, name: str) -> np.ndarray:
        """A whole array, read anew."""
        return self.part(name, 0, None)

    def part(self, name: str, start: int, stop: int | None) -> np.ndarray:
        """``array[start:stop]``, read anew."""
        dtype, shape = self._index[name]
        width = int(np.prod(shape, dtype=np.int64))
        count = -1 if stop is None else (stop - start) * width
        offset = start * width * np.dtype(dtype).itemsize
        return np.fromfile(self.folder / f"{name}.bin", dtype, count, offset=offset).reshape(-1, *shape)

    def file(self, name: str) -> ArrayFile:
        """A flat array of which few values are read at a time."""
        return ArrayFile(self.folder / f"{name}.bin", self._index[name][0])


class ArrayFile:
    """A flat array in a file: ``file[start:stop]`` reads these values alone.

    It keeps nothing in memory, and may be used by several threads and by forked or pickled copies at once.
    """

    def __init__(self, path: Path, dtype: str) -> None:
        self.path = path
        self.dtype = np.dtype(dtype)
        self._descriptor: int | None = None

    def __getitem__(self, place: slice) -> np.ndarray:
        if self._descriptor is None:
            self._descriptor = os.open(self.path, os.O_RDONLY)
        size = self.dtype.itemsize
        values = os.pread(self._descriptor, (place.stop - place.start) * size, place.start * size)
        return np.frombuffer(bytearray(values), self.dtype)  # of a bytearray, so that the values may be written to

    def __reduce__(self) -> tuple[Any, ...]:
        return ArrayFile, (self.path, self.dtype.str)

    def __del__(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
