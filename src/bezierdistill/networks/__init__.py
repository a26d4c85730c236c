"""Networks ``net(x, s, t, cond)`` that predict the average velocity between the times s and t; on the diagonal, the velocity."""

from bezierdistill.networks.embeddings import TimeEmbedding
from bezierdistill.networks.mlp import MLP
from bezierdistill.networks.transformer import Transformer

__all__ = ["MLP", "TimeEmbedding", "Transformer"]
