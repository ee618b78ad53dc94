"""The data sets that Eagle 2.5 was trained on: what each is (table.py), and its official layout's rows (layouts.py)."""
