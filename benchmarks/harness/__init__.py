"""The harness of benchmarks/returns.py: plans of runs, their rows in a CSV file, and what the rows say.

Imports go one way: variants → plans → rows → runs → progress, pool, worker, status; references → scores → evidence → figures;
tables stands alone; command is at the top.
"""
