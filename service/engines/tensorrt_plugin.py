"""Our deformable attention as a TensorRT plugin in Python: it gives shapes and launches our kernel.

It is for TensorRT-RTX, which has no ahead-of-time plugins. Replaying a CUDA graph runs no Python.
An ONNX node, and so an engine, names its kernel by the file's sha256; the kernels are in the
bundle.
"""

from __future__ import annotations

import ctypes
import gzip
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from service.bundle.kernel import KernelFile
from service.engines.cuda import Kernel

NAME, VERSION, NAMESPACE, FIELD = "MsDeformAttn", "1", "", "kernel"


@dataclass
class Compiled:
    """A kernel's PTX. The first launch compiles it for the chip, so it must not be in a capture."""

    about: KernelFile
    image: bytes
    _loaded: list[Kernel] = field(default_factory=list)

    @classmethod
    def read(cls, folder: Path, about: KernelFile) -> Compiled:
        """Read a kernel from a bundle's folder; its files were verified."""
        return cls(about, gzip.decompress((folder / about.file).read_bytes()))

    def launch(self, batch: int, queries: int, inputs: list[int], out: int, stream: int) -> None:
        if not self._loaded:
            self._loaded.append(Kernel(self.image, self.about.launch.entry))
        pointers = [ctypes.c_void_p(address) for address in inputs]
        grid, block = self.about.launch.grid(batch, queries), self.about.launch.block
        self._loaded[0].launch(
            grid, block, stream, *pointers, ctypes.c_int(queries), ctypes.c_void_p(out)
        )


def register(trt: ModuleType, kernels: Mapping[str, Compiled]) -> None:
    """Make kernels (sha256 -> kernel) known to this process's TensorRT. Later calls add others."""
    creator = _creator(trt)
    creator.kernels.update(kernels)


@cache  # TensorRT keeps a reference to it, and accepts only one of each name
def _creator(trt: ModuleType) -> Any:
    plugin = _plugin_class(trt)

    class Creator(trt.IPluginCreatorV3One):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.name, self.plugin_version, self.plugin_namespace = NAME, VERSION, NAMESPACE
            self.field_names = trt.PluginFieldCollection(
                [trt.PluginField(FIELD, b"", trt.PluginFieldType.CHAR)]
            )
            self.kernels: dict[str, Compiled] = {}

        def create_plugin(self, name: str, fields: Any, phase: Any) -> Any:
            values = {entry.name: bytes(entry.data.tobytes()) for entry in fields}
            return plugin(self.kernels, values[FIELD].decode().rstrip("\0"))

    creator = Creator()
    trt.get_plugin_registry().register_creator(creator, NAMESPACE)
    return creator


def _plugin_class(trt: ModuleType) -> Any:
    class Plugin(
        trt.IPluginV3,  # type: ignore[misc, name-defined]
        trt.IPluginV3OneCore,  # type: ignore[misc, name-defined]
        trt.IPluginV3OneBuild,  # type: ignore[misc, name-defined]
        trt.IPluginV3OneRuntime,  # type: ignore[misc, name-defined]
    ):
        def __init__(self, kernels: Mapping[str, Compiled], key: str) -> None:
            for base in Plugin.__bases__:
                base.__init__(self)
            self.plugin_name, self.plugin_version, self.plugin_namespace = NAME, VERSION, NAMESPACE
            self.num_outputs, self.timing_cache_id = 1, key
            self.kernels, self.key = kernels, key

        def get_capability_interface(self, kind: Any) -> Any:
            return self

        def get_output_data_types(self, types: Any) -> Any:
            return [types[0]]

        def get_output_shapes(self, inputs: Any, shapes: Any, expressions: Any) -> Any:
            value, offsets = inputs[:2]  # (B, S, M, D), (B, Q, M, L, P, 2)
            out = trt.DimsExprs(3)
            out[0], out[1] = offsets[0], offsets[1]
            out[2] = expressions.operation(trt.DimensionOperation.PROD, value[2], value[3])
            return [out]

        def supports_format_combination(self, place: int, both: Any, count: int) -> bool:
            stored = self.kernels[self.key].about.problem.dtype
            wanted = "float32" if place == 3 else stored  # 3: the reference points
            tensor = both[place].desc
            return (
                tensor.format == trt.TensorFormat.LINEAR and type_name(trt, tensor.type) == wanted
            )

        def configure_plugin(self, inputs: Any, outputs: Any) -> None:
            """Nothing to do: the kernel has the shapes."""

        def on_shape_change(self, inputs: Any, outputs: Any) -> None:
            """Nothing to do: each launch reads the batch and the number of queries."""

        def get_fields_to_serialize(self) -> Any:
            return trt.PluginFieldCollection(
                [trt.PluginField(FIELD, self.key.encode(), trt.PluginFieldType.CHAR)]
            )

        def get_valid_tactics(self) -> list[int]:
            return []

        def set_tactic(self, tactic: int) -> None:
            """Nothing to do: there is only one tactic."""

        def attach_to_context(self, context: Any) -> Any:
            return self.clone()

        def clone(self) -> Any:
            return Plugin(self.kernels, self.key)

        def enqueue(
            self, specs: Any, out_specs: Any, inputs: Any, outputs: Any, workspace: Any, stream: int
        ) -> None:
            batch, queries = specs[1].dims[0], specs[1].dims[1]
            self.kernels[self.key].launch(batch, queries, list(inputs), outputs[0], stream)

    return Plugin


def type_name(trt: ModuleType, kind: Any) -> str:
    """The usual name of TensorRT's type, e.g. float16."""
    names = {
        "FLOAT": "float32",
        "HALF": "float16",
        "BF16": "bfloat16",
        "UINT8": "uint8",
        "INT32": "int32",
    }
    return next(
        (name for key, name in names.items() if kind == getattr(trt.DataType, key)), str(kind)
    )
