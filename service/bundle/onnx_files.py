"""The files that an ONNX graph takes its tensors from, read without ONNX.

A graph is a protobuf message, and names such a file under "location" in the external data of a
tensor.
"""

from __future__ import annotations

from collections.abc import Iterator

# Kind of message -> field -> the kind of message in it, on the way to tensors (onnx.proto).
_PARTS = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}
KEY = b"location"
_VARINT, _EIGHT, _BYTES, _FOUR = 0, 1, 2, 5  # kinds of fields; others have no value of their own


def external_files(graph: bytes) -> set[str]:
    """As the graph names them. Of a damaged one those up to the damage: nothing opens it."""
    found: set[str] = set()
    todo = [("model", graph)]
    while todo:
        kind, message = todo.pop()
        if kind == "entry":
            entry = dict(_fields(message))
            if entry.get(1) == KEY:
                found.add(entry.get(2, b"").decode("utf-8", "surrogateescape"))
            continue
        parts = _PARTS[kind]
        todo += [
            (parts[field], value)
            for field, value in _fields(message)
            if field in parts and KEY in value  # most parts need no further look
        ]
    return found


def _fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """The number and the content of each field that holds bytes."""
    at = 0
    try:
        while at < len(message):
            tag, at = _varint(message, at)
            form = tag & 7
            if form == _VARINT:
                _, at = _varint(message, at)
            elif form == _BYTES:
                size, at = _varint(message, at)
                if at + size > len(message):
                    return
                yield tag >> 3, message[at : at + size]
                at += size
            else:
                at += {_EIGHT: 8, _FOUR: 4}.get(form, 0)
    except IndexError:
        return  # it ends in the middle of a number


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """A number, and where it ends."""
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
