"""Which memory is alive: every storage from its making to its end, and what stood there when it was most."""

import weakref
from collections import Counter
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

TEMPORARY, ACTIVATIONS, GRADIENTS, COPIES = "temporary", "activations", "gradients", "gathered and cast weights"

CLOSE = 1.002
"""A new peak is looked at in detail once it is that much above the last one that was: tens of looks, not thousands."""


class Record:
    """One storage."""

    __slots__ = ("kind", "size")

    def __init__(self, kind: str) -> None:
        self.kind, self.size = kind, 0


def _key(storage: torch.UntypedStorage) -> int:
    """Where a storage is, whoever looks at it."""
    return storage._cdata  # pyright: ignore[reportPrivateUsage]


class Ledger:
    """Bytes of all storages that are alive, by kind, and the most there ever were at once.

    A storage is "temporary" until it is found to be something else. Its kind at the peak is the one that it has in the
    end, so that a gradient counts as one from the moment it is made.
    """

    def __init__(self) -> None:
        self.now = self.peak = 0
        self.place = ""
        """What runs now."""
        self.where = ""
        """What ran at the peak."""
        self._records: dict[int, Record] = {}
        self._looked = 0.0
        self._seen: list[tuple[Record, int]] = []

    def add(self, tensors: Iterable[Tensor], kind: str = TEMPORARY) -> None:
        """Note storages that are there; one that is known already keeps its kind."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            key = _key(storage)
            if key not in self._records:
                self._records[key] = record = Record(kind)
                weakref.finalize(storage, self._end, key).atexit = False
                self._resize(record, storage.nbytes())

    def call(self, tensors: Iterable[Tensor], kind: str) -> None:
        """Say what tensors are, now and at a peak that has been."""
        for tensor in tensors:
            self.add([tensor], kind)
            self._records[_key(tensor.untyped_storage())].kind = kind

    def call_temporaries(self, kind: str) -> None:
        """Say what all that is alive and temporary turns out to be."""
        for record in self._records.values():
            if record.kind == TEMPORARY:
                record.kind = kind

    def kind_of(self, tensor: Tensor) -> str | None:
        """What a tensor is; None: its storage was never seen."""
        record = self._records.get(_key(tensor.untyped_storage()))
        return record.kind if record else None

    def held(self) -> dict[str, int]:
        """Bytes of each kind now, most first."""
        found = Counter[str]()
        for record in self._records.values():
            found[record.kind] += record.size
        return {kind: size for kind, size in found.most_common() if size > 0}

    def forget_peak(self) -> None:
        """Look for the peak from now on."""
        self.peak = self._looked = 0
        self._look()

    def at_peak(self) -> dict[str, int]:
        """Bytes of each kind at the peak, most first; they sum to it."""
        found = Counter[str]()
        for record, size in self._seen:
            found[record.kind] += size
        found[TEMPORARY] += self.peak - sum(found.values())  # what came behind the last look, little
        return {kind: size for kind, size in found.most_common() if size > 0}

    @contextmanager
    def following_resizes(self) -> Generator[None, None, None]:
        """FSDP gives and takes the memory of gathered weights by resizing storages, which no dispatch mode sees.

        torch's own memory trackers (`torch.distributed._tools.mem_tracker`) follow it in this way, too.
        """
        resize = torch.UntypedStorage.resize_

        def followed(storage: torch.UntypedStorage, size: int) -> Any:
            done = resize(storage, size)
            if record := self._records.get(_key(storage)):
                record.kind = COPIES if size else record.kind
                self._resize(record, size)
            return done

        torch.UntypedStorage.resize_ = followed  # pyright: ignore[reportAttributeAccessIssue]
        try:
            yield
        finally:
            torch.UntypedStorage.resize_ = resize

    def _end(self, key: int) -> None:
        self.now -= self._records.pop(key).size

    def _resize(self, record: Record, size: int) -> None:
        self.now += size - record.size
        record.size = size
        if self.now > self.peak:
            self._look()

    def _look(self) -> None:
        self.peak, self.where = self.now, self.place
        if self.now > CLOSE * self._looked:
            self._looked = self.now
            self._seen = [(record, record.size) for record in self._records.values() if record.size]
