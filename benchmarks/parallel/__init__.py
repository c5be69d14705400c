"""What ranks cost that train together: formulas, tables and pictures of data_parallel.py."""
