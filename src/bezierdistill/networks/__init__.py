"""Networks ``net(x, s, t, cond)`` that predict the average velocity between the times s and t; on
the diagonal, the velocity.
"""

from bezierdistill.networks.dit import DiT
from bezierdistill.networks.embeddings import TimeEmbedding
from bezierdistill.networks.foreign import Foreign, ForeignConfig
from bezierdistill.networks.mlp import MLP
from bezierdistill.networks.unet import UNet

__all__ = ["MLP", "DiT", "Foreign", "ForeignConfig", "TimeEmbedding", "UNet"]
