"""Hosts that draw for each other: a process that waits sends jobs through Redis, Celery brings them to the hosts, and what
they draw comes back. README.md describes how. Nothing here is imported without the setting `cluster.redis`."""
