"""Samples in memory, as many as fit: those that were not used for longest go first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable

from model_export.data.sample import Sample

CACHE_MB = 1024


class SampleCache:
    """Bounded by bytes, since images differ in size a thousandfold. Data sets can share one."""

    def __init__(self, megabytes: float = CACHE_MB) -> None:
        """megabytes: of 2^20 bytes, at most; 0 keeps nothing."""
        self.most = int(megabytes * (1 << 20))
        self.bytes = 0
        self._samples: OrderedDict[Hashable, Sample] = OrderedDict()

    def __len__(self) -> int:
        return len(self._samples)

    def get(self, key: Hashable, make: Callable[[], Sample]) -> Sample:
        """The sample of this key; it is made where it is not there."""
        if key in self._samples:
            self._samples.move_to_end(key)
            return self._samples[key]
        sample = make()
        if sample.size <= self.most:
            self._samples[key] = sample
            self.bytes += sample.size
            while self.bytes > self.most:
                self.bytes -= self._samples.popitem(last=False)[1].size
        return sample
