"""Easel beside comfy-api-proxy and gpu-broker's demo: what was measured and seen, and the page that shows it.

`python -m bench.comparison` installs the two from PyPI into environments of their own, measures, and writes
docs/comparison.json and docs/comparison.md. Nothing in the page is written by hand but what the program cannot see."""
