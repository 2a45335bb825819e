"""One command or script written out for several branches: `{name}` stands for a value of the branch's own.

What has no value is left as it stands, since scripts have braces of their own. The size of what is written out is
known before anything is written: a request cannot make it large (tests/shared/races/test_request.py).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

from shared.races.fields import LONGEST_ARGUMENT, ParameterValue

MOST_PLACES: Final = 1_000  # of values, in one text
MOST_WRITTEN: Final = 16 * 1024 * 1024  # characters, in all branches together


def as_text(value: ParameterValue) -> str:
    """A value as it stands in a command: numbers and truth values as JSON writes them."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def written_out(texts: Sequence[str], branches: Sequence[Mapping[str, str]]) -> list[list[str]]:
    """The texts of each branch; all branches have values of the same names. Raises ValueError for too much."""
    names = branches[0].keys() if branches else ()
    place = re.compile("|".join(re.escape(f"{{{name}}}") for name in names) or r"(?!)")
    counts = [sum(text.count(f"{{{name}}}") for name in names) for text in texts]
    if max(counts, default=0) > MOST_PLACES:
        raise ValueError(f"a command or script holds at most {MOST_PLACES} places for values")
    longest = max((len(value) for values in branches for value in values.values()), default=0)
    sizes = [len(text) + count * longest for text, count in zip(texts, counts, strict=True) if count]
    if sum(sizes) * len(branches) > MOST_WRITTEN:
        raise ValueError(f"written out, the branches hold more than {MOST_WRITTEN} characters; hand files over instead")
    filled = [
        [
            place.sub(lambda found: values[found[0][1:-1]], text) if count else text  # noqa: B023  # used at once
            for text, count in zip(texts, counts, strict=True)
        ]
        for values in branches
    ]
    if any(len(text.encode(errors="surrogatepass")) > LONGEST_ARGUMENT for each in filled for text in each):
        raise ValueError(f"written out, a command or script is longer than {LONGEST_ARGUMENT} bytes")
    return filled
