"""Which variables an environment was asked for: what `Settings` read is what a deployment must hand over."""

from __future__ import annotations

from collections.abc import Iterator, Mapping


class NotedEnviron(Mapping[str, str]):
    """An environment, as it is. `read`: the names of the variables that were looked up by name, set or not."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self.read: set[str] = set()

    def __getitem__(self, name: str) -> str:
        self.read.add(name)
        return self._environ[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._environ)

    def __len__(self) -> int:
        return len(self._environ)
