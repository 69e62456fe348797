"""Names of what an exported graph has as one node."""

# The deformable attention, in ONNX and as an operator of TensorRT.
DOMAIN, OPERATOR = "fathom", "MsDeformAttn"
# Until export/places.py writes them in ONNX's own operators.
EMBEDDING, POINTS = "SineEmbedding", "ReferencePoints"
