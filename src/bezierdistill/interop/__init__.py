"""diffusers in and out: pretrained teachers from its folders, students as its pipelines."""

from bezierdistill.interop.lora import export_lora
from bezierdistill.interop.reading import import_diffusers
from bezierdistill.interop.writing import export_diffusers

__all__ = ["export_diffusers", "export_lora", "import_diffusers"]
