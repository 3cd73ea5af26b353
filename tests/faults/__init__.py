"""Faults, injected into real jobs: `python -m tests.faults --help`."""
