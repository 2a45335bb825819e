"""Each mistake that the rules warn of (docs/architecture.md#rules), made on purpose, is caught by the explorer: the
rules are checked indeed."""

from __future__ import annotations

import pytest

from tests.faults.explorer.mutants import MUTANTS, Mutant, kill

MOST_RUNS = 1000


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name.replace(" ", "-"))
def test_the_explorer_kills_the_mutant(mutant: Mutant) -> None:
    killed = kill(mutant, "mutants", MOST_RUNS)
    assert killed is not None, f"{MOST_RUNS} runs did not show it: {mutant.name}"
    assert any(violation.rule in mutant.broken for violation in killed.violations)
