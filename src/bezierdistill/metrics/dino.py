"""DINO as a feature extractor, from a folder of transformers that the user has: no download.

The features are the class token after the last normalisation, of images resized to 224 pixels: as
Stein et al. 2023 (arXiv 2306.04675) judge generators by DINOv2.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from bezierdistill.errors import UserError
from bezierdistill.metrics.features import ImageFeatures

SIZE = 224  # pixels
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's colours


class DinoFeatures(ImageFeatures):
    """``features(x)``: images ``(B, C, H, W)`` in [-1, 1], grey or RGB, to the class token.

    Args:
        path: a folder with ``config.json`` and ``model.safetensors``, such as that of
            ``facebook/dinov2-small``.

    Raises:
        UserError: if transformers is not installed, the folder holds no such model, or some of its
            weights are missing.
    """

    pixels = SIZE
    mean: Tensor
    std: Tensor

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.model = _read_model(path)
        config: Any = self.model.config
        self.name, self.num_features = config.model_type, config.hidden_size
        for name, values in {"mean": MEAN, "std": STD}.items():
            self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)
        self.freeze(self.model)

    def _features(self, x: Tensor) -> Tensor:
        x = ((x + 1) / 2).expand(-1, 3, -1, -1)
        x = functional.interpolate(x, (SIZE, SIZE), mode="bicubic", antialias=True)
        return self.model((x - self.mean) / self.std).last_hidden_state[:, 0]


def _read_model(path: Path) -> nn.Module:
    if not (path / "config.json").is_file():
        raise UserError(f"{path} is no folder with config.json and model.safetensors of a DINO")
    try:
        from transformers import AutoModel
    except ImportError:
        told = f"{path} needs transformers, which is not installed"
        raise UserError(f"{told}: pip install 'bezierdistill[pipelines]'") from None
    try:
        model, said = AutoModel.from_pretrained(
            path,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError) as error:
        told = " ".join(str(error).split())[:200]
        raise UserError(f"{path} holds no model that transformers reads: {told}") from None
    if lacking := sorted(said["missing_keys"]):
        raise UserError(f"{path} lacks weights {lacking[0]}: fetch it again")
    return model.float()
