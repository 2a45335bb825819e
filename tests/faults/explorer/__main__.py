"""`python -m tests.faults.explorer`: runs of the explorer by their seeds."""

from tests.faults.explorer.command import main

main()
