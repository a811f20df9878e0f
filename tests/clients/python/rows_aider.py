"""Aider, run as a command."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from row_support import ANSWER, CHAT_MODELS, Servers, is_real


@pytest.mark.parametrize("streams", ["--stream", "--no-stream"])
@pytest.mark.parametrize("model", CHAT_MODELS)
def test_51_a_question_is_answered(servers: Servers, tmp_path: Path, model: str, streams: str) -> None:
    # A tiny model of a real server never ends by itself.
    settings = tmp_path / "models.yml"
    settings.write_text(f'[{{"name": "openai/{model}", "extra_params": {{"max_tokens": 200}}}}]')
    command = [
        str(Path(sys.executable).with_name("aider")),
        *("--model", f"openai/{model}", "--openai-api-base", f"{servers.llm}/v1", "--openai-api-key", "unused"),
        *("--no-git", "--yes-always", "--no-check-update", "--analytics-disable", "--no-show-model-warnings"),
        *("--no-auto-commits", "--no-pretty", "--map-tokens", "0", "--edit-format", "ask", streams),
        *("--model-settings-file", str(settings), "--message", "Hello"),
    ]  # fmt: skip
    environment = {**os.environ, "HOME": str(tmp_path)}
    result = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stdout + result.stderr
    expected = ("Tokens:", "Output tokens:") if is_real(model) else (ANSWER,)
    assert any(text in result.stdout for text in expected), result.stdout
