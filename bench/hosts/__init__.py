"""Measures and breaks Easel on several hosts: front ends, Redis, `easel worker` processes and their engines, each in a
process of its own on this machine."""
