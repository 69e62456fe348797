"""The HTTP form of the protocol: JSON, and tensors as bytes behind it (the binary extension).

In JSON, an element of a BYTES tensor is a string: an image file in base64. Values may be nested by
the shape or flat. A member that is null counts as absent: some clients write them all.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NoReturn

from service.core import Ask
from service.errors import BadInference, shown
from service.open_inference.infer import Reply
from service.open_inference.parameters import given
from service.open_inference.request import (
    IMAGE,
    MAX_IMAGES,
    PIXELS,
    Input,
    Offer,
    Request,
    check_input,
    check_shape,
    elements,
    wanted,
)

# The header field with the bytes of JSON before the binary data.
HEADER_LENGTH = "Inference-Header-Content-Length"
MAX_HEADER = 64 * 1024  # bytes of JSON before binary data
# What a document may hold: nothing else runs while it is read, and a number takes 36 bytes, an
# empty list 64. Pixels of more than a megapixel go behind the JSON.
MAX_STRINGS, MAX_LISTS, MAX_VALUES = 4096, 1_000_000, 4_000_000


@dataclass(frozen=True, slots=True)
class Sent:
    """A request, and which outputs its answer shall have as binary data."""

    request: Request
    binary: frozenset[str]


def parse(body: bytes, header_length: str | None, offer: Offer, fields: Ask) -> Sent:
    """The body of a request.

    header_length: the field HEADER_LENGTH. None: all is JSON; 0: nothing is, the body is one image
    file. offer: the model's outputs. fields: what the other header fields ask for. Raises
    BadInference, BadBudget, BadPreference.
    """
    if header_length is None:
        return _parse(body, b"", offer, fields)
    if not header_length.isascii() or not header_length.isdecimal() or len(header_length) > 10:
        raise BadInference(f"{HEADER_LENGTH} must be a number of bytes")
    length = int(header_length)
    if length > len(body):
        raise BadInference(f"{HEADER_LENGTH} is {length}, but the body has {len(body)} bytes")
    if length == 0:
        file = Input(IMAGE, "BYTES", [1], files=[body])
        return Sent(Request(wanted("", {}, [], offer, fields), file), frozenset())
    if length > MAX_HEADER and length < len(body):
        raise BadInference(f"the JSON before the binary data has more than {MAX_HEADER} bytes")
    return _parse(body[:length], body[length:], offer, fields)


def only_ready(body: bytes) -> bool:
    """The body of a question for the repository's index: whether it wants ready models alone."""
    return bool(body) and _flag(_load(body), "ready", False)


def write(reply: Reply, binary: frozenset[str]) -> tuple[bytes, int | None]:
    """The body of an answer, and the bytes of JSON before its binary data; None: it has none."""
    texts: list[bytes] = []
    buffers: list[bytes] = []
    for tensor in reply.outputs:
        head: dict[str, Any] = {
            "name": tensor.name,
            "datatype": tensor.datatype,
            "shape": list(tensor.shape),
        }
        if tensor.name in binary:
            data = tensor.raw()
            head["parameters"] = {"binary_data_size": len(data)}
            buffers.append(data)
            texts.append(json.dumps(head).encode())
        else:
            start = json.dumps(head)[:-1].encode()
            texts.append(b'%b, "data": [%b]}' % (start, tensor.in_json()))
    members = {"model_name": reply.model_name, "model_version": reply.model_version}
    if reply.id:
        members["id"] = reply.id
    start = json.dumps({**members, "parameters": reply.parameters})[:-1].encode()
    text = b'%b, "outputs": [%b]}' % (start, b", ".join(texts))
    return b"".join([text, *buffers]), len(text) if buffers else None


def _parse(text: bytes, rest: bytes, offer: Offer, fields: Ask) -> Sent:
    document = _load(text)
    parameters = document.get("parameters", {})
    outputs = _objects(document.get("outputs", []), "outputs")
    names = [output.get("name") for output in outputs]
    asked = wanted(document.get("id", ""), parameters, names, offer, fields)
    whole = _flag(parameters, "binary_data_output", False)
    binary = {
        name
        for name, output in zip(names, outputs, strict=True)
        if _flag(_of_output(name, output), "binary_data", whole)
    }
    if not outputs and whole:
        binary = set(asked.outputs)
    inputs = _objects(document.get("inputs"), "inputs")
    if len(inputs) != 1:
        raise BadInference(f"there are {len(inputs)} inputs: send one, '{IMAGE}' or '{PIXELS}'")
    return Sent(Request(asked, _input(inputs[0], rest)), frozenset(map(str, binary)))


def _load(text: bytes) -> dict[str, Any]:
    lists = text.count(b"[") + text.count(b"{")
    if text.count(b'"') > 2 * MAX_STRINGS or lists > MAX_LISTS or text.count(b",") > MAX_VALUES:
        raise BadInference(
            "the JSON has too many values, strings, lists or objects: send pixels as binary data"
        )
    try:
        document = json.loads(text.decode("utf-8-sig"), parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise BadInference("the body is no JSON object, or not in UTF-8") from error
    if not isinstance(document, dict):
        raise BadInference("the body must be a JSON object")
    return given(document)


def _no_number(text: str) -> NoReturn:
    raise ValueError(text)  # NaN and Infinity are not JSON


def _objects(value: object, what: str) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise BadInference(f"{what} must be a list of objects")
    if len(value) > MAX_IMAGES:
        raise BadInference(f"{what} has too many entries")
    return list(map(given, value))


def _flag(parameters: Mapping[str, object], name: str, otherwise: bool) -> bool:
    value = parameters.get(name)
    if value is None:
        return otherwise
    if not isinstance(value, bool):
        raise BadInference(f"the parameter '{name}' must be true or false")
    return value


def _of_output(name: object, output: Mapping[str, Any]) -> Mapping[str, object]:
    """The parameters of a requested output."""
    return _parameters(output, f"the output {shown(name)}", {"binary_data"})


def _parameters(tensor: Mapping[str, Any], whose: str, known: set[str]) -> Mapping[str, object]:
    found = tensor.get("parameters", {})
    if not isinstance(found, dict):
        raise BadInference(f"the parameters of {whose} must be an object")
    found = given(found)
    for key in found.keys() - known:
        shared = key.startswith("shared_memory")
        why = ": shared memory is not offered" if shared else " is unknown"
        raise BadInference(f"the parameter {shown(key)} of {whose}{why}")
    return found


def _input(tensor: Mapping[str, Any], rest: bytes) -> Input:
    name, datatype = tensor.get("name"), tensor.get("datatype")
    if not isinstance(name, str) or not isinstance(datatype, str):
        raise BadInference("an input must have a name and a datatype, as strings")
    check_input(name, datatype)
    whose = f"the input {shown(name)}"
    shape = check_shape(name, tensor.get("shape"))
    size = _parameters(tensor, whose, {"binary_data_size"}).get("binary_data_size")
    if size is None:
        if rest:
            raise BadInference(f"the body has {len(rest)} bytes more than the request speaks of")
        return _from_json(name, datatype, shape, tensor.get("data"))
    if type(size) is not int or size != len(rest):
        raise BadInference(
            f"binary_data_size of {whose} is {shown(size)}, but the binary data has {len(rest)} "
            "bytes"
        )
    if "data" in tensor:
        raise BadInference(f"{whose} has data and a binary_data_size: send one of them")
    if datatype == "BYTES":
        return Input(name, datatype, shape, files=elements(rest, shape[0] if shape else 1))
    return Input(name, datatype, shape, values=rest)


def _from_json(name: str, datatype: str, shape: list[int], data: object) -> Input:
    whose = f"the data of the input {shown(name)}"
    found = _flat(data, shape, whose)
    if datatype == "BYTES":
        return Input(name, datatype, shape, files=_files(found, whose))
    whole = set(map(type, found)) <= {int}  # to Python, true is a 1
    if whole and 0 <= min(found, default=0) <= max(found, default=0) <= 255:
        return Input(name, datatype, shape, values=bytes(found))
    raise BadInference(f"{whose} must be integers from 0 to 255")


def _flat(data: object, shape: Sequence[int], whose: str) -> list[Any]:
    """The values in the JSON of a tensor."""
    if isinstance(data, list) and list not in set(map(type, data)):
        return data  # how many they are is checked with the shape
    level: list[Any] = [data]
    right = isinstance(data, list)
    for size in shape:
        right = right and all(type(part) is list and len(part) == size for part in level)
        level = list(chain.from_iterable(level)) if right else []
    if not right or list in set(map(type, level)):
        raise BadInference(f"{whose} must be a list, flat or nested as the shape {shape} says")
    return level


def _files(values: list[Any], whose: str) -> list[bytes]:
    files: list[bytes] = []
    for value in values:
        which = f"Image {len(files)}: " if len(values) > 1 else ""
        if not isinstance(value, str):
            raise BadInference(
                f"{which}{whose} must be strings: image files in base64. Bytes as they are go "
                "behind the JSON (the protocol's binary data)"
            )
        if value.startswith("data:"):
            raise BadInference(f"{which}{whose} is a data URL: send what follows its comma alone")
        try:
            # Tools that encode break the lines.
            text = value.replace("\n", "").replace("\r", "")
            files.append(base64.b64decode(text, validate=True))
        except ValueError as error:
            raise BadInference(
                f"{which}{whose} is not base64: letters, digits, + and / in fours, filled up with ="
            ) from error
    return files
