"""Curves on disk: sharded safetensors and one JSON manifest with checksums, written shard by shard,
read by memory mapping.

A store is a folder::

    manifest.json              what made it (degree, shape, seed, digests of teachers), its shards
    manifest.copy.json         the same
    shard-000000.safetensors   rows first: "points" (rows, points, *shape), and "cond" (rows, C) if
                               there are any
    shard-000000.json          the record of a finished shard, until the store is complete

Points are kept in single precision, bfloat16, or a byte per number
(:mod:`~bezierdistill.store.codec`); sources that are noise may be drawn again from their seed
instead of being stored. Every shard is whole before its record names it, and a rerun makes what is
missing.
"""

from bezierdistill.store.manifest import MANIFEST, held_recipe, read_manifest
from bezierdistill.store.merge import merge
from bezierdistill.store.reader import CurveStore
from bezierdistill.store.writer import CurveWriter, repair, simulate_shards

__all__ = [
    "MANIFEST",
    "CurveStore",
    "CurveWriter",
    "held_recipe",
    "merge",
    "read_manifest",
    "repair",
    "simulate_shards",
]
