"""Our CUDA kernels: sources, how each is launched (launch), how they are compiled (nvrtc) and run
(on_torch).

A leaf that knows nothing of the network. Every front end (the torch operator, TensorRT's plugins,
the benchmark) takes the kernel from here, so that there is one source and one launch description.
launch and nvrtc need no torch.
"""
