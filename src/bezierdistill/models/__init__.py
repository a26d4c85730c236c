"""Trained teachers and students: what they do, and their folders."""

from bezierdistill.models.model import (
    CARD,
    Model,
    NetworkConfig,
    find_teacher,
    finite,
    load_model,
    read_network,
    save_model,
)

__all__ = [
    "CARD",
    "Model",
    "NetworkConfig",
    "find_teacher",
    "finite",
    "load_model",
    "read_network",
    "save_model",
]
