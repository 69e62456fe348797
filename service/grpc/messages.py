"""The protocol's messages, from their published field numbers (open_inference_grpc.proto of
kserve/open-inference-protocol, Apache-2.0).

Their classes live in a pool of their own, so that a process can also hold somebody else's generated
code for the same names. On the wire a nested message looks like any other, and a map like a list of
entries; that is how they are described here.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto

# Message -> its fields in the order of their numbers; * is a list, - a number that is not used.
# Fields of ONE_OF exclude each other.
_PACKAGE = "inference"
_ONE_OF = "InferParameter"
_MESSAGES = {
    "ServerLiveRequest": "",
    "ServerLiveResponse": "live:bool",
    "ServerReadyRequest": "",
    "ServerReadyResponse": "ready:bool",
    "ModelReadyRequest": "name:string version:string",
    "ModelReadyResponse": "ready:bool",
    "ServerMetadataRequest": "",
    "ServerMetadataResponse": "name:string version:string extensions:*string",
    "ModelMetadataRequest": "name:string version:string",
    "TensorMetadata": "name:string datatype:string shape:*int64",
    "ModelMetadataResponse": (
        "name:string versions:*string platform:string inputs:*TensorMetadata "
        "outputs:*TensorMetadata"
    ),
    # Of grpc.health.v1; its enum is a number on the wire.
    "HealthCheckRequest": "service:string",
    "HealthCheckResponse": "status:int32",
    _ONE_OF: (
        "bool_param:bool int64_param:int64 string_param:string double_param:double "
        "uint64_param:uint64"
    ),
    "Parameter": "key:string value:InferParameter",
    "InferTensorContents": "- - - uint_contents:*uint32 - - - bytes_contents:*bytes",
    "InferInputTensor": (
        "name:string datatype:string shape:*int64 parameters:*Parameter "
        "contents:InferTensorContents"
    ),
    "InferRequestedOutputTensor": "name:string parameters:*Parameter",
    "ModelInferRequest": (
        "model_name:string model_version:string id:string parameters:*Parameter "
        "inputs:*InferInputTensor outputs:*InferRequestedOutputTensor raw_input_contents:*bytes"
    ),
    "InferOutputTensor": "name:string datatype:string shape:*int64",
    "ModelInferResponse": (
        "model_name:string model_version:string id:string parameters:*Parameter "
        "outputs:*InferOutputTensor raw_output_contents:*bytes"
    ),
}
SERVICE = f"{_PACKAGE}.GRPCInferenceService"


def _describe(file: FileDescriptorProto, name: str, fields: str) -> None:
    message = file.message_type.add(name=name)
    if name == _ONE_OF:
        message.oneof_decl.add(name="parameter_choice")
    for number, text in enumerate(fields.split(), start=1):
        label, _, kind = text.partition(":")
        if not kind:
            continue
        field = message.field.add(name=label, number=number)
        several = kind.startswith("*")
        kind = kind.removeprefix("*")
        field.label = _kind("LABEL_REPEATED" if several else "LABEL_OPTIONAL")
        if kind in _MESSAGES:
            field.type, field.type_name = _kind("TYPE_MESSAGE"), f".{_PACKAGE}.{kind}"
        else:
            field.type = _kind(f"TYPE_{kind.upper()}")
        if name == _ONE_OF:
            field.oneof_index = 0


def _kind(name: str) -> Any:
    return getattr(FieldDescriptorProto, name)


def _classes() -> dict[str, Any]:
    file = FileDescriptorProto(name="fathom.proto", package=_PACKAGE, syntax="proto3")
    for name, fields in _MESSAGES.items():
        _describe(file, name, fields)
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}"))
        for name in _MESSAGES
    }


MESSAGES: dict[str, Any] = _classes()
