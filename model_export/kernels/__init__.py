"""Our CUDA kernels: their sources, how they are launched (launch), compiled (nvrtc) and run
(on_torch).

A leaf that knows nothing about the network. The torch operator, TensorRT's plugins and the
benchmark all take the kernel from here, so there is one source and one description of the launch.
launch and nvrtc need no torch.
"""
