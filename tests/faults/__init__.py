"""Faults provoked, and what becomes of them; the table is matrix.yaml."""
