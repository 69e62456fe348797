"""The messages of ModelInfer: a request as all transports have it, and the message of an answer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from service.core import Ask
from service.errors import BadInference, shown
from service.grpc.messages import MESSAGES
from service.open_inference.infer import Reply
from service.open_inference.parameters import within
from service.open_inference.request import (
    Input,
    Offer,
    Request,
    check_input,
    check_shape,
    elements,
    wanted,
)

_KINDS = {str: "string_param", int: "int64_param", float: "double_param"}


def request_of(message: Any, fields: Ask, remaining_s: float | None, offer: Offer) -> Request:
    """fields: what the metadata ask for. remaining_s: until the caller's own deadline. offer: the
    model's outputs. Raises BadInference, BadBudget and BadPreference."""
    names = [out.name for out in message.outputs]
    found = wanted(message.id, _plain(message.parameters), names, offer, fields)
    if remaining_s is not None:
        budget = within(found.ask.budget, max(1.0, remaining_s * 1000))
        found = replace(found, ask=replace(found.ask, budget=budget))
    if len(message.inputs) != 1:
        raise BadInference(f"there are {len(message.inputs)} inputs: send one")
    (tensor,) = message.inputs
    check_input(tensor.name, tensor.datatype)
    # Both belong to HTTP, and KServe's client sends them here, too.
    for entry in (tensor, *message.outputs):
        for key in _plain(entry.parameters).keys() - {"binary_data_size", "binary_data"}:
            raise BadInference(f"the parameter {shown(key)} of {shown(entry.name)} is unknown")
    raw, shape = list(message.raw_input_contents), check_shape(tensor.name, list(tensor.shape))
    if len(raw) > 1 or (raw and tensor.HasField("contents")):
        raise BadInference("the input must have contents or raw contents, of one tensor")
    if tensor.datatype == "BYTES":
        count = shape[0] if shape else 1
        files = elements(raw[0], count) if raw else list(tensor.contents.bytes_contents)
        return Request(found, Input(tensor.name, "BYTES", shape, files=files))
    try:
        values = raw[0] if raw else bytes(tensor.contents.uint_contents)
    except ValueError as error:
        raise BadInference("the values of the input must be from 0 to 255") from error
    return Request(found, Input(tensor.name, tensor.datatype, shape, values=values))


def _plain(parameters: Iterable[Any]) -> dict[str, object]:
    chosen = ((entry, entry.value.WhichOneof("parameter_choice")) for entry in parameters)
    return {entry.key: getattr(entry.value, kind) if kind else None for entry, kind in chosen}


def response_of(found: Reply) -> Any:
    return MESSAGES["ModelInferResponse"](
        model_name=found.model_name,
        model_version=found.model_version,
        id=found.id,
        parameters=[
            {"key": key, "value": {_KINDS[type(value)]: value}}
            for key, value in found.parameters.items()
        ],
        outputs=[
            {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape}
            for tensor in found.outputs
        ],
        raw_output_contents=[tensor.raw() for tensor in found.outputs],
    )
