"""All metrics: name, type, help, labels. The table in docs/observability.md is generated from this one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

BUCKETS_S = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
"""Of all histograms of seconds"""


@dataclass(frozen=True)
class Family:
    """One metric. `kind`: as Prometheus calls it. Counters end in `_total`. Gauges are read when Prometheus asks, others
    are counted where it happens."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()


REQUESTS = Family(
    "easel_http_requests_total",
    "counter",
    "Responses to HTTP requests, by the pattern of the path.",
    ("route", "method", "status"),
)
IN_PROGRESS = Family(
    "easel_http_requests_in_progress",
    "gauge",
    "HTTP requests that are being answered or wait, in living workers.",
)
ERRORS = Family("easel_errors_total", "counter", "Responses that are errors, by code.", ("code",))
DRAWINGS = Family(
    "easel_drawings_total",
    "counter",
    "Requests for pictures that reached the GPU's queue and ended: done, failed or cancelled.",
    ("model", "result"),
)
DRAWING_ERRORS = Family(
    "easel_drawing_errors_total",
    "counter",
    "Errors that ended a drawing, by code: also those in a stream, which is no error response.",
    ("code",),
)
PICTURES = Family("easel_pictures_total", "counter", "Pictures that were drawn.", ("model", "key"))
GPU_SECONDS = Family(
    "easel_gpu_seconds_total",
    "counter",
    "Seconds for which ComfyUI ran finished jobs; the built-in sketch engine uses no GPU and counts nothing.",
    ("model", "key"),
)
WAIT = Family(
    "easel_job_wait_seconds",
    "histogram",
    "Time that a finished job waited for the GPU and in ComfyUI's queue.",
    ("model",),
)
RENDER = Family(
    "easel_job_render_seconds", "histogram", "Time for which the engine ran a finished job.", ("model",)
)
SWITCHOVERS = Family(
    "easel_switchovers_total",
    "counter",
    "Switchovers of all GPUs that ended, by the mode they led to: done, failed or abandoned.",
    ("target", "result"),
)
ENGINE_PICTURES = Family(
    "easel_engines_pictures_total", "counter", "Pictures that were drawn, by engine.", ("engine",)
)
ENGINE_SECONDS = Family(
    "easel_engines_busy_seconds_total",
    "counter",
    "Seconds for which an engine ran finished jobs, the sketch engine included.",
    ("engine",),
)
PHASES = Family(
    "easel_switchover_phase_seconds",
    "histogram",
    "Time that a phase of a switchover took.",
    ("target", "phase"),
)

BUILD = Family("easel_build_info", "gauge", "Always 1; the labels have the versions.", ("version", "python"))
STARTED = Family("easel_start_time_seconds", "gauge", "Unix time at which the server started.")
WRITABLE = Family(
    "easel_metrics_writable",
    "gauge",
    "Whether counters reach the state directory; if not, each worker reports only its own.",
)
ENGINE_UP = Family("easel_engine_up", "gauge", "Whether the engine answers.")
ENGINE_READY = Family(
    "easel_engine_ready", "gauge", "Whether the engine answers and nothing keeps it from drawing."
)
ENGINE_INFO = Family(
    "easel_engine_info",
    "gauge",
    "Always 1 while the engine answers; kind is comfyui or sketch.",
    ("version", "kind"),
)
VRAM_TOTAL = Family("easel_engine_vram_size_bytes", "gauge", "Memory of the engine's GPU.")
VRAM_FREE = Family(
    "easel_engine_vram_free_bytes", "gauge", "Free memory of the engine's GPU, for all programs."
)
RAM_TOTAL = Family("easel_engine_ram_size_bytes", "gauge", "Memory of the engine's machine.")
RAM_FREE = Family("easel_engine_ram_free_bytes", "gauge", "Free memory of the engine's machine.")
ENGINES_UP = Family("easel_engines_up", "gauge", "Whether an engine answers.", ("engine",))
ENGINES_DRAINED = Family(
    "easel_engines_drained",
    "gauge",
    "Whether an engine is drained, so that it gets no new jobs.",
    ("engine",),
)
ENGINES_JOBS = Family(
    "easel_engines_running_jobs", "gauge", "Jobs of Easel that have the GPU of an engine.", ("engine",)
)
ENGINES_WAITING = Family(
    "easel_engines_waiting_jobs",
    "gauge",
    "Jobs and LLM requests that wait for the GPU of an engine.",
    ("engine",),
)
ENGINES_VRAM_TOTAL = Family(
    "easel_engines_vram_size_bytes", "gauge", "Memory of the GPU of an engine.", ("engine",)
)
ENGINES_VRAM_FREE = Family(
    "easel_engines_vram_free_bytes",
    "gauge",
    "Free memory of the GPU of an engine, for all programs.",
    ("engine",),
)
GPUS_MODE = Family(
    "easel_gpus_mode",
    "gauge",
    "1 for the mode that has the GPU, of each GPU of `engines` that LLM servers share.",
    ("gpu", "mode"),
)
GPUS_PINNED = Family(
    "easel_gpus_pinned",
    "gauge",
    "Whether generation mode is pinned, of each GPU of `engines` that LLM servers share.",
    ("gpu",),
)
GPUS_SWITCHING = Family(
    "easel_gpus_switchover_active",
    "gauge",
    "Whether the GPU is being handed over, of each GPU of `engines` that LLM servers share.",
    ("gpu",),
)
GPUS_SWITCHOVERS = Family(
    "easel_gpus_switchovers_total",
    "counter",
    "Switchovers that ended, by the GPU of `engines`, the mode they led to, and how they ended.",
    ("gpu", "target", "result"),
)
CLUSTER_WAITING = Family(
    "easel_cluster_waiting_jobs",
    "gauge",
    "Where other hosts draw: jobs that no host has yet, of all front ends, by model.",
    ("model",),
)
ENGINE_QUEUE = Family(
    "easel_engine_queue_jobs",
    "gauge",
    "Jobs in ComfyUI, also those of its own page: running or pending.",
    ("state",),
)
WAITING = Family(
    "easel_waiting_requests", "gauge", "Requests that wait for the GPU, by the mode they need.", ("mode",)
)
JOBS = Family("easel_running_jobs", "gauge", "Jobs of Easel that have the GPU.")
MODE = Family("easel_gpu_mode", "gauge", "1 for the mode that has the first engine's GPU.", ("mode",))
PINNED = Family("easel_gpu_pinned", "gauge", "Whether generation mode is pinned on the first engine's GPU.")
SWITCHING = Family("easel_switchover_active", "gauge", "Whether the first engine's GPU is being handed over.")
STACK_UP = Family("easel_llm_stack_up", "gauge", "Whether an LLM server answers.", ("stack",))
STACK_LOADED = Family(
    "easel_llm_stack_loaded_models", "gauge", "Models that an LLM server has loaded.", ("stack",)
)
LLM_LOADED = Family(
    "easel_llm_model_loaded", "gauge", "1 for each model that an LLM server has loaded.", ("stack", "model")
)
MODELS = Family(
    "easel_models",
    "gauge",
    "Models of the catalogue that were checked: ready, or missing files or nodes.",
    ("state",),
)
DOWNLOADS = Family("easel_downloads_active", "gauge", "Pulls of model files that run or wait.")
DOWNLOAD_RECEIVED = Family("easel_downloads_received_bytes", "gauge", "What the active pulls have received.")
DOWNLOAD_SIZE = Family(
    "easel_downloads_size_bytes", "gauge", "What the active pulls will receive, as far as known."
)
DOWNLOAD_RATE = Family("easel_downloads_bytes_per_second", "gauge", "Rate of the active pulls together.")
IMAGES = Family("easel_image_store_images", "gauge", "Images in the image store.")
IMAGES_SIZE = Family("easel_image_store_bytes", "gauge", "Size of the image store.")

FAMILIES: tuple[Family, ...] = (
    *(
        REQUESTS,
        IN_PROGRESS,
        ERRORS,
        DRAWINGS,
        DRAWING_ERRORS,
        PICTURES,
        GPU_SECONDS,
        WAIT,
        RENDER,
        ENGINE_PICTURES,
        ENGINE_SECONDS,
        SWITCHOVERS,
        GPUS_SWITCHOVERS,
        PHASES,
    ),
    *(
        BUILD,
        STARTED,
        WRITABLE,
        ENGINE_UP,
        ENGINE_READY,
        ENGINE_INFO,
        VRAM_TOTAL,
        VRAM_FREE,
        RAM_TOTAL,
        RAM_FREE,
    ),
    *(ENGINES_UP, ENGINES_DRAINED, ENGINES_JOBS, ENGINES_WAITING, ENGINES_VRAM_TOTAL, ENGINES_VRAM_FREE),
    *(GPUS_MODE, GPUS_PINNED, GPUS_SWITCHING, CLUSTER_WAITING),
    *(ENGINE_QUEUE, WAITING, JOBS, MODE, PINNED, SWITCHING, STACK_UP, STACK_LOADED, LLM_LOADED, MODELS),
    *(DOWNLOADS, DOWNLOAD_RECEIVED, DOWNLOAD_SIZE, DOWNLOAD_RATE, IMAGES, IMAGES_SIZE),
)
