"""The Open Inference Protocol v2 over gRPC. Imported only when --grpc-port asks for it: grpcio and
protobuf are the extra `grpc`."""
