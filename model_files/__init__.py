"""The files of the models on disk: pulls them into ComfyUI's folders and frees them. Knows HTTP and folders; knows nothing
of Flask, graphs or how a model draws.

`requests`, which a worker does not need otherwise, is imported only by the process that pulls.
"""

from __future__ import annotations

from model_files.elsewhere import shell_commands
from model_files.folders import ModelFolders, find_model_folders
from model_files.plan import FileProgress, PullPlan, plan_pull
from model_files.pull_store import PullFolder, PullStore
from model_files.remove import Removal, plan_removal, remove

__all__ = [
    "FileProgress",
    "ModelFolders",
    "PullFolder",
    "PullPlan",
    "PullStore",
    "Removal",
    "find_model_folders",
    "plan_pull",
    "plan_removal",
    "remove",
    "shell_commands",
]
