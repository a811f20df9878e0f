"""LLM servers that share the GPU with ComfyUI: which models they have loaded, and how to unload and reload them.

Knows the HTTP calls of LLM servers, as data. Never knows pictures, graphs, the web application or who needs the GPU.
"""

from llm.drivers import built_in_drivers
from llm.stack_config import read_stacks
from llm.stacks import Stacks, StackStatus

__all__ = ["StackStatus", "Stacks", "built_in_drivers", "read_stacks"]
