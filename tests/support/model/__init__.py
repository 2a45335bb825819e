"""Both services in memory, for exploring schedules and faults: they obey the same contracts as the real ones, behind
the same ports, in virtual time, and every choice comes from a plan, so that a run can be had again.

What the model is held to: tests/conformance. What it leaves out: credentials, bytes on the wire, images, sizes.
"""
