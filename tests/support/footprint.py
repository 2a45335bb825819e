"""Memory and open files of running processes over time, read from /proc."""

from __future__ import annotations

import contextlib
import os
import statistics
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.support.beside import beside

_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_MB: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Sample:
    """A process and all its descendants at one moment: `rss` in bytes, `files` open, `seconds` after the start."""

    seconds: float
    rss: int
    files: int


@dataclass(frozen=True, slots=True)
class Growth:
    """From the first third of a run after its warm-up to the last third: medians of memory (MB) and open files."""

    name: str
    samples: int
    rss_before: float
    rss_after: float
    files_before: float
    files_after: float

    @property
    def rss(self) -> float:
        return self.rss_after - self.rss_before

    @property
    def files(self) -> float:
        return self.files_after - self.files_before


def children(pid: int) -> list[int]:
    """Direct children; none for a process that is gone."""
    found: list[int] = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                found += map(int, (task / "children").read_text().split())
    return found


def tree(pid: int) -> list[int]:
    return [pid, *(below for child in children(pid) for below in tree(child))]


def measure(pid: int, seconds: float) -> Sample:
    rss = files = 0
    for each in tree(pid):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            rss += int(Path(f"/proc/{each}/statm").read_text().split()[1]) * _PAGE
            files += len(os.listdir(f"/proc/{each}/fd"))  # noqa: PTH208 - counting, thousands of times
    return Sample(seconds, rss, files)


def growth(name: str, samples: Sequence[Sample], warm_up: float) -> Growth:
    """Raises ValueError for fewer than six samples after `warm_up` seconds."""
    warm = [sample for sample in samples if sample.seconds >= warm_up]
    third = len(warm) // 3
    if third < 2:
        raise ValueError(f"{name}: {len(warm)} samples after the warm-up are too few")
    first, last = warm[:third], warm[-third:]
    return Growth(
        name,
        len(warm),
        statistics.median(sample.rss for sample in first) / _MB,
        statistics.median(sample.rss for sample in last) / _MB,
        statistics.median(sample.files for sample in first),
        statistics.median(sample.files for sample in last),
    )


@dataclass
class FootprintWatch:
    """Samples of the watched processes, by name."""

    samples: dict[str, list[Sample]] = field(default_factory=dict)

    def growths(self, warm_up: float) -> list[Growth]:
        return [growth(name, samples, warm_up) for name, samples in self.samples.items()]

    def peaks(self) -> dict[str, tuple[float, int]]:
        """The most memory (MB) and the most open files of any sample, by name."""
        return {
            name: (max(each.rss for each in samples) / _MB, max(each.files for each in samples))
            for name, samples in self.samples.items()
            if samples
        }


@contextlib.contextmanager
def watching(processes: Mapping[str, int], every: float) -> Iterator[FootprintWatch]:
    """Samples each process every so many seconds for as long as the block lasts."""
    watch = FootprintWatch({name: [] for name in processes})
    began = time.monotonic()

    def sample(over: threading.Event) -> None:
        while not over.wait(every):
            for name, pid in processes.items():
                watch.samples[name].append(measure(pid, time.monotonic() - began))

    with beside("footprint", sample):
        yield watch
