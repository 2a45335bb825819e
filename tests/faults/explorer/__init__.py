"""Explores schedules and faults: the real dispatcher and reconciler against the model of both services.

    python -m tests.faults.explorer --runs 10000 --seed 1

A seed is a plan (what happens when, and which call meets what), a plan is a run in virtual time, and a run that breaks
a rule (docs/architecture.md#rules) is shrunk to the shortest plan that still does.
"""
