"""A busy hour in a minute: a real Easel with sketches, a simulated LLM and a simulated GPU, and people who use it.

Knows what these people ask for and when; reads what the arbiter decided from its event log. Uses neither the settings nor
the data of this installation, and no network but loopback.
"""
