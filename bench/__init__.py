"""Measures what Easel adds, compared with a plain client of the same engine, in the same run, on the same machine."""
