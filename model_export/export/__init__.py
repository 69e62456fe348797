"""From a trained run to a bundle: ONNX graphs, parity, cost; and TensorRT engines of a bundle."""
