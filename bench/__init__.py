"""Measures what Easel costs: against a plain client of the same engine, in the same run, on the same machine."""
