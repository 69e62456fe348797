"""What the deformable attention is called in ONNX: one node, and an operator of TensorRT by the
same name."""

DOMAIN, OPERATOR = "fathom", "MsDeformAttn"
