"""Compiles what our services import, and nothing else: the rest of the wheels is never run.

Every module of ours is imported once; Python leaves the bytecode of all that is loaded on the way.
"""

import contextlib
import importlib
import pkgutil

import kstream_agg

for module in pkgutil.walk_packages(kstream_agg.__path__, "kstream_agg."):
    # What belongs to the local stack or to tests asks for packages the image does not have.
    if not module.name.endswith("__main__"):
        with contextlib.suppress(ImportError):
            importlib.import_module(module.name)
