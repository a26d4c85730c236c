"""bezierdistill: flow models distilled along Bezier curves, from several teachers, into generators
of one or two network passes.

    data -> flow matching -> teacher fields -> blend -> simulate -> Bezier curves -> curve store
         -> distil -> student -> sample -> evaluate

Time runs from t=0 (source) to t=1 (data) everywhere; ``docs/notation.md`` has the symbols. The
public names are listed in ``__init__.pyi``; each is imported when it is first used, so that
``import bezierdistill`` does not wait for torch.
"""

import lazy_loader

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
