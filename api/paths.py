"""Paths that several modules of this package know."""

from __future__ import annotations

STORED_IMAGES = "/api/images/cache/"
"""Before the name of a stored image"""
GALLERY = "/api/images"
"""The list of stored images; before `/NAME` what is known of one"""
MODEL_PATHS = ("/v1/models", "/v1-openai/models")
"""OpenAI's path and GPUStack's"""
TAGS_PATH, VERSION_PATH = "/api/tags", "/api/version"
"""Ollama's"""
IMAGE_JOBS, GPUSTACK_IMAGE_JOBS = "/v1/images/jobs", "/v1-openai/images/jobs"
EVENTS = "/api/events"
GRAPH = "/api/graph"
SAVED_GRAPH = f"{GRAPH}/save"
