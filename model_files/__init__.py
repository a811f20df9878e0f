"""The files of the models on disk: pulls them into ComfyUI's folders and frees them. Knows HTTP and folders; knows nothing
of Flask, graphs or how a model draws.

`requests`, which a worker does not need otherwise, is imported only by the process that pulls.
"""
