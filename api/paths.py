"""Paths that several modules of this package know."""

from __future__ import annotations

STORED_IMAGES = "/api/images/cache/"
"""Before the name of a stored image"""
