"""The Open Inference Protocol v2 without a transport: HTTP and gRPC both end here.

request: what a caller may send. parameters: what it asks for. rest: its JSON form with the binary
extension. infer: images -> tensors. description: what clients ask about the server and its model.
"""
