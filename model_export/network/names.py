"""The name of the deformable attention as a node in ONNX and as an operator of TensorRT."""

DOMAIN, OPERATOR = "fathom", "MsDeformAttn"
