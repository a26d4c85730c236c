"""Real samples by name or path, or of Python objects, in the units a model works in.

:func:`load_data` takes a built-in name, a path or an object and gives a :class:`Data`: the shape of
a state, a reversible :class:`Scaling`, and three disjoint splits: ``train``, ``valid`` (to choose
settings by) and ``test`` (to evaluate against).
"""

from bezierdistill.data.base import ArrayData, Data, one_hot, rescaled
from bezierdistill.data.given import name_data
from bezierdistill.data.images import check_size, from_pixels, read_images
from bezierdistill.data.labels import parse_labels
from bezierdistill.data.lazy import LazyData
from bezierdistill.data.loading import BUILT_IN, load_data
from bezierdistill.data.reading import read_array, read_file
from bezierdistill.data.samples import Inputs, check_range, read_inputs, read_samples
from bezierdistill.data.scaling import Scaling
from bezierdistill.data.sizes import Size
from bezierdistill.data.stream import StreamData
from bezierdistill.data.toys import EndlessData

__all__ = [
    "BUILT_IN",
    "ArrayData",
    "Data",
    "EndlessData",
    "Inputs",
    "LazyData",
    "Scaling",
    "Size",
    "StreamData",
    "check_range",
    "check_size",
    "from_pixels",
    "load_data",
    "name_data",
    "one_hot",
    "parse_labels",
    "read_array",
    "read_file",
    "read_images",
    "read_inputs",
    "read_samples",
    "rescaled",
]
