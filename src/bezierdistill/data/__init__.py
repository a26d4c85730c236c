"""Real samples by name or path, in the units a model works in.

:func:`load_data` takes a built-in name or a path and gives a :class:`Data`: the shape of a state, a
reversible :class:`Scaling`, and three disjoint sides: ``train``, ``valid`` (to choose settings by)
and ``test`` (to judge by).
"""

from bezierdistill.data.base import ArrayData, Data, EndlessData, one_hot
from bezierdistill.data.loading import BUILT_IN, load_data
from bezierdistill.data.reading import read_array, read_images, read_sides
from bezierdistill.data.scaling import Scaling

__all__ = [
    "BUILT_IN",
    "ArrayData",
    "Data",
    "EndlessData",
    "Scaling",
    "load_data",
    "one_hot",
    "read_array",
    "read_images",
    "read_sides",
]
