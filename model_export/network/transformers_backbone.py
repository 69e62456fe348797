"""A backbone of transformers behind our network: any AutoBackbone with four stages.

transformers is an extra (`pip install '.[import]'`): nothing here loads it before it is needed.
"""

from __future__ import annotations

import importlib
from typing import Any

from torch import Tensor, nn

from model_export.network.config import ImportedBackbone


def transformers() -> Any:
    """The package. Raises ValueError that says how to install it."""
    try:
        return importlib.import_module("transformers")
    except ImportError as error:
        raise ValueError(
            f"a network with a backbone of transformers needs that package ({error}): "
            f"pip install '.[import]'"
        ) from error


class TransformersBackbone(nn.Module):
    """channels: of its four maps, coarser and coarser. mean, std: (3, 1, 1), see ImportedBackbone.

    Attention is written out ("eager"): the fused operator has no form in ONNX that runs everywhere.
    """

    def __init__(self, imported: ImportedBackbone) -> None:
        super().__init__()
        package, about = transformers(), dict(imported.about)
        config = package.AutoConfig.for_model(about.pop("model_type"), **about)
        self.model = package.AutoBackbone.from_config(config, attn_implementation="eager")
        self.channels = tuple(self.model.channels)
        self.mean, self.std = (
            [[[value]] for value in values] for values in (imported.mean, imported.std)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, 3, H, W) normalised -> [(B, C, H/s, W/s) for s in 4, 8, 16, 32]."""
        return list(self.model(x).feature_maps)
