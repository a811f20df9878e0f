"""ComfyUI's refusals and failures as Easel's errors, without paths of the machine that ComfyUI runs on."""

from __future__ import annotations

from typing import Any

import pytest

from engine.errors import is_dropped, node_failure, submission_error, without_paths
from errors import EngineGpuFailed, EngineOutOfMemory, NodeFailed


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cannot identify image file '/home/me/in put/a.png'", "cannot identify image file '<path>'"),
        ("No such file: /home/me/ComfyUI/x.py, line 3", "No such file: <path>, line 3"),
        (r"[WinError 3] C:\Users\me\ComfyUI\out", "[WinError 3] <path>"),
        (r'cannot open "D:\my pictures\fox.png"', 'cannot open "<path>"'),
        (r"\\server\share\model.yaml is gone", "<path> is gone"),
        ("~/models/x.json and (/opt/y)", "<path> and (<path>)"),
        ("file:///home/me/x.png", "file:<path>"),
        (
            " full_output_folder: /home/al ice/out\n commonpath: /home",
            "full_output_folder: <path>\n commonpath: <path>",
        ),
        ("/root", "<path>"),
        # The name of a file of weights says what to download again.
        (
            "File path: /data/ComfyUI/models/vae/ae.safetensors\n\nit is corrupt",
            "File path: <path>/ae.safetensors\n\nit is corrupt",
        ),
        ("File path: /data/My Models/t5 xxl.sft", "File path: <path>/t5 xxl.sft"),
        (r'cannot open "D:\my models\flux.gguf"', 'cannot open "<path>/flux.gguf"'),
        ("failed reading zip archive: /home/me/m/a.pth.", "failed reading zip archive: <path>/a.pth"),
        ("~/models/x.ckpt and (/opt/y)", "<path>/x.ckpt and (<path>)"),
    ],
)
def test_paths_are_replaced(text: str, expected: str) -> None:
    assert without_paths(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "The size of tensor a (16) must match the size of tensor b (128) at dimension 1",
        "width 64/8, and/or 3 / 4",
        "see https://example.org/a/b for more",
        "ckpt_name: 'SD1.5/model.safetensors' not in ['a.safetensors', 'b/c.safetensors']",
        "'str' object has no attribute 'shape'",
    ],
)
def test_text_that_is_not_a_path_stays(text: str) -> None:
    assert without_paths(text) == text


def test_a_long_message_is_cut() -> None:
    assert len(without_paths("x" * 10_000)) == 500


def test_out_of_memory_is_reported_without_pytorchs_and_comfyuis_tips() -> None:
    message = "Allocation on device 0 would exceed allowed memory.\nThis error means you ran out of memory.\n\nTIPS: buy more"
    error = node_failure(
        {
            "node_id": "sampler",
            "node_type": "KSampler",
            "exception_type": "torch.OutOfMemoryError",
            "exception_message": message,
        }
    )
    assert error.message.endswith("would exceed allowed memory.")
    assert "TIPS" not in str(error.details)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("torch.OutOfMemoryError", "Allocation on device "),
        ("torch.cuda.OutOfMemoryError", "CUDA out of memory. Tried to allocate 2.00 GiB"),
        ("RuntimeError", "HIP out of memory. Tried to allocate 20.00 MiB"),
        ("RuntimeError", "MPS backend out of memory (MPS allocated: 9.05 GB)"),
        (
            "RuntimeError",
            "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory",
        ),
        (
            "RuntimeError",
            "DefaultCPUAllocator: not enough memory: you tried to allocate 4398046511104 bytes.",
        ),
        ("numpy._core._exceptions._ArrayMemoryError", "Unable to allocate 4.00 TiB for an array"),
        ("RuntimeError", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        ("MemoryError", ""),
        ("RuntimeError", "Invalid buffer size: 19.38 GiB"),
        ("RuntimeError", "Insufficient Memory (00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)"),
        ("RuntimeError", "failed to allocate private MTLBuffer for size 1073741824"),
        (
            "RuntimeError",
            "Could not allocate tensor with 268435456 bytes. There is not enough GPU video memory available!",
        ),
        ("RuntimeError", "[F dml_allocator.cc] hr 8007000E"),
        ("RuntimeError", "Native API failed. Native API returns: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)"),
        ("RuntimeError", "Native API failed. Native API returns: -5 (PI_ERROR_OUT_OF_RESOURCES)"),
        ("RuntimeError", "level_zero backend failed with error: 40 (UR_RESULT_ERROR_OUT_OF_RESOURCES)"),
        ("torch.OutOfMemoryError", "XPU out of memory. Tried to allocate 2.00 GiB"),
        ("OSError", "[WinError 1455] Die Auslagerungsdatei ist zu klein"),
        (
            "safetensors_rust.SafetensorError",
            "The paging file is too small for this operation to complete. (os error 1455)",
        ),
        ("OSError", "[WinError 8] Not enough memory resources are available to process this command"),
        ("RuntimeError", "hipErrorOutOfMemory"),
        ("RuntimeError", "std::bad_alloc"),
        ("RuntimeError", "x" * 600 + " CUDA out of memory"),
    ],
)
def test_out_of_memory_is_recognised_on_every_backend(kind: str, message: str) -> None:
    assert isinstance(node_failure({"exception_type": kind, "exception_message": message}), EngineOutOfMemory)


@pytest.mark.parametrize(
    "message",
    [
        "index out of bounds", "invalid buffer size for mask", "expected memory format channels_last",
        "[WinError 2] no such file", "[WinError 87] wrong parameter", "out of range", "os error 80",
    ],
)  # fmt: skip
def test_other_failures_are_not_taken_for_out_of_memory(message: str) -> None:
    failure = node_failure({"exception_type": "RuntimeError", "exception_message": message})
    assert type(failure) is NodeFailed


def test_damaged_weights_keep_the_name_of_their_file() -> None:
    message = (
        "Error while deserializing header: incomplete metadata, file not fully covered\n\n"
        "File path: /data/ComfyUI/models/text_encoders/t5xxl_fp16.safetensors\n\n"
        "The safetensors file is corrupt or invalid."
    )
    failure = node_failure({"exception_type": "SafetensorError", "exception_message": message})
    assert "t5xxl_fp16.safetensors" in failure.message
    assert "/data" not in failure.message + str(failure.details)


def test_a_failure_has_node_class_and_exception_and_nothing_else() -> None:
    failure = node_failure(
        {
            "node_id": "sampler",
            "node_type": "KSampler",
            "exception_type": "RuntimeError",
            "exception_message": "shapes do not match\n",
            "traceback": ['  File "/srv/ComfyUI/execution.py", line 496'],
            "current_inputs": {"positive": ["what the user asked for"]},
        }
    )
    assert type(failure) is NodeFailed
    assert failure.message == "KSampler (node sampler) failed: shapes do not match"
    assert failure.details == {
        "node": "sampler",
        "class_type": "KSampler",
        "exception_type": "RuntimeError",
        "exception_message": "shapes do not match",
    }


def test_a_failure_without_data_still_has_a_message() -> None:
    assert node_failure({}).message


@pytest.mark.parametrize(
    ("node_errors", "output", "dropped"),
    [
        ({}, "save", False),
        (None, None, False),
        ({"a": {"errors": [], "dependent_outputs": ["other"]}}, None, True),
        ({"a": {"errors": [], "dependent_outputs": ["other"]}}, "save", False),
        ({"a": {"errors": [], "dependent_outputs": ["other", "save"]}}, "save", True),
        ({"a": {"errors": []}}, "save", True),
        ({"a": None}, "save", True),
        (["odd"], "save", True),
    ],
)
def test_an_output_is_dropped_if_an_error_says_so_or_does_not_say(
    node_errors: Any, output: str | None, dropped: bool
) -> None:
    assert is_dropped(node_errors, output) is dropped


def _errors(node_errors: Any) -> Any:
    error = {"type": "prompt_outputs_failed_validation", "message": "Prompt outputs failed validation"}
    graph = {"1": {"class_type": "KSampler", "inputs": {}}}
    return submission_error(400, {"error": error, "node_errors": node_errors}, graph).details["errors"]


def test_an_error_has_node_class_input_type_and_message_but_no_traceback_or_configuration() -> None:
    error = {
        "type": "exception_during_validation",
        "message": "Exception when validating node",
        "details": "cannot read /srv/ComfyUI/input/x.png",
        "extra_info": {"input_name": "image", "input_config": [["a", "b"]], "traceback": ["File ..."]},
    }
    assert _errors({"1": {"errors": [error], "class_type": "KSampler"}}) == [
        {
            "node": "1",
            "class_type": "KSampler",
            "input": "image",
            "type": "exception_during_validation",
            "message": "Exception when validating node: cannot read <path>",
        }
    ]


def test_an_error_without_a_node_suggests_a_cycle_of_links() -> None:
    (error,) = _errors({})
    assert (error["node"], error["type"]) == (None, "prompt_outputs_failed_validation")
    assert "cycle" in error["message"]


def test_the_first_error_is_the_message_and_the_others_are_counted() -> None:
    errors = [{"type": "t", "message": text, "details": ""} for text in ("first", "second", "third")]
    error = submission_error(400, {"error": {}, "node_errors": {"1": {"errors": errors}}}, {})
    assert error.message == "ComfyUI refused the graph: node (node 1): first (and 2 more)"


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("torch.AcceleratorError", "CUDA error: an illegal memory access was encountered\nSearch for more"),
        ("RuntimeError", "CUDA error: device-side assert triggered\nCUDA kernel errors might be"),
        ("RuntimeError", "HIP error: unspecified launch failure"),
    ],
)
def test_a_gpu_that_failed_needs_a_restart_of_comfyui(kind: str, message: str) -> None:
    error = node_failure({"exception_type": kind, "exception_message": message})
    assert isinstance(error, EngineGpuFailed)
    assert error.message.endswith(f"{message.partition(chr(10))[0]}. Restart ComfyUI")


def test_a_lack_of_memory_that_cuda_reports_is_no_failure_of_the_gpu() -> None:
    error = node_failure(
        {"exception_type": "torch.AcceleratorError", "exception_message": "CUDA error: out of memory"}
    )
    assert isinstance(error, EngineOutOfMemory)
