"""Trained teachers and students: what they do, and their folders."""

from bezierdistill.models.folder import find_teacher, load_model, save_model
from bezierdistill.models.model import Model

__all__ = ["Model", "find_teacher", "load_model", "save_model"]
