"""Engines, jobs and loads in simulated time: Easel's choice of an engine (`engines.choice`) beside two simpler ways."""
