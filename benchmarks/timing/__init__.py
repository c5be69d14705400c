"""The harness of benchmarks/speed.py: cases, their models, turns of the peers, and what the rows say.

Imports go one way: machine, cases → models → work, limit → measuring, profiling, presets; rows → tables, figure; command is at
the top.
"""
