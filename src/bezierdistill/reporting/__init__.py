"""Results for people: tables in the terminal, pictures, and one self-contained HTML page per run.

The names are listed in ``__init__.pyi``; each is imported when it is first used, so that a table
does not wait for matplotlib.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
