"""Measurements.  Enters: a model, or the machine itself; leaves: figures, and the tables that show them."""
