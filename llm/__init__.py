"""LLM servers beside ComfyUI: what they hold in GPU memory, and how they let go of it and get it back.

Knows the calls of LLM servers, as data. Never knows pictures, graphs, the web application or who asks for the GPU.
"""

from llm.drivers import built_in_drivers
from llm.stack_config import read_stacks
from llm.stacks import Stacks, StackStatus

__all__ = ["StackStatus", "Stacks", "built_in_drivers", "read_stacks"]
