"""Our deformable attention as a plugin that TensorRT compiles into the engine ahead of time: it
runs without Python.

For TensorRT 10.9 and later. Its decorators read the functions' annotations, so they are not
postponed here. A node names its kernel by the file's sha256, in the attribute `kernel`, as for
TensorRT-RTX.
"""

import importlib
from collections.abc import Mapping
from typing import Any

from model_export.network.names import DOMAIN, OPERATOR
from service.engines.tensorrt_plugin import Compiled


def register(kernels: Mapping[str, Compiled]) -> None:
    """Make the operator fathom::MsDeformAttn known to this process's TensorRT."""
    trtp: Any = importlib.import_module("tensorrt.plugin")
    name = f"{DOMAIN}::{OPERATOR}"

    def describe(
        value: trtp.TensorDesc,
        offsets: trtp.TensorDesc,
        logits: trtp.TensorDesc,
        reference: trtp.TensorDesc,
        kernel: str,
    ) -> trtp.TensorDesc:
        # (B, S, M, D), (B, Q, M, L, P, 2)
        of_value, of_offsets = (
            value.shape_expr,
            offsets.shape_expr,
        )
        return trtp.from_shape_expr(
            (of_value[0], of_offsets[1], of_value[2] * of_value[3]), value.dtype
        )

    def implement(
        value: trtp.TensorDesc,
        offsets: trtp.TensorDesc,
        logits: trtp.TensorDesc,
        reference: trtp.TensorDesc,
        kernel: str,
        outputs,
        tactic,
    ) -> tuple[str | bytes, str | bytes, trtp.KernelLaunchParams, trtp.SymIntExprs]:
        compiled = kernels[kernel]
        launch = compiled.about.launch
        batch, queries = offsets.shape_expr[0], offsets.shape_expr[1]
        params = trtp.KernelLaunchParams(
            grid_x=launch.tiles or trtp.cdiv(queries, launch.per_block),
            grid_y=launch.head_groups,
            grid_z=batch,
            block_x=launch.block,
        )
        numbers = trtp.SymIntExprs(1)
        numbers[0] = trtp.SymInt32(queries)
        return launch.entry, compiled.image, params, numbers

    trtp.register(name)(describe)
    trtp.aot_impl(name)(implement)
