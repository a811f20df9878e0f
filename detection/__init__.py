"""What runs and lies on this machine that Easel can use: a ComfyUI and its folders, LLM servers, a GPU. Only looks: sends
nothing but GET requests without credentials, and starts nothing. Knows no settings, no catalogue and no Flask."""

from __future__ import annotations

from detection.addresses import ollama_url, usual_urls
from detection.comfyui_folders import (
    ComfyuiPlace,
    comfyui_place,
    is_models_folder,
    place_of_folder,
    usual_folders,
)
from detection.hardware import Gpu, gpus, memory_bytes
from detection.listening import check_address, free_port
from detection.probes import find_services
from detection.processes import Process, listening_processes
from detection.services import Answer, Comfyui, Service, identify

__all__ = [
    "Answer",
    "Comfyui",
    "ComfyuiPlace",
    "Gpu",
    "Process",
    "Service",
    "check_address",
    "comfyui_place",
    "find_services",
    "free_port",
    "gpus",
    "identify",
    "is_models_folder",
    "listening_processes",
    "memory_bytes",
    "ollama_url",
    "place_of_folder",
    "usual_folders",
    "usual_urls",
]
