"""From a trained run to a bundle: what is exported (graphs), how (onnx), and what it costs
(flops)."""
