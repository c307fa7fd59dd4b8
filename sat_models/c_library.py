"""C libraries of the package: compiled where it was installed, called through ctypes.

`NAME.c` beside the Python file that calls it, with its parts `NAME_*.h`, is compiled to `_NAME` by setup.py, with the
checksum of them inside, which `NAME_source()` gives. Where no compiler was at hand there is no library, and torch's
operators do the work.
"""

from __future__ import annotations

import ctypes
import logging
import zlib
from importlib.resources import files
from importlib.util import find_spec

logger = logging.getLogger(__name__)

REMEDY = (
    "a CPU is slower than it could be; install again with a C compiler at hand (pip install --force-reinstall "
    "--no-cache-dir --no-deps)"
)


def open_library(package: str, name: str, arguments: dict[str, list[type]]) -> ctypes.CDLL | None:
    """The library of `name`.c in `package`; None, with the reason in the log, if it is absent or of another version.

    Args:
        arguments: of each function that is called, by name.
    """
    found = find_spec(f"{package}._{name}")
    if found is None:
        logger.info("no C kernels (%s): %s", name, REMEDY)
        return None
    try:
        library = ctypes.CDLL(found.origin)
        built_from = ctypes.c_uint32(getattr(library, f"{name}_source")()).value
        functions = {function: getattr(library, function) for function in arguments}
    except (OSError, AttributeError) as error:
        logger.warning("the C kernels (%s) cannot be loaded (%s): %s", name, error, REMEDY)
        return None
    if built_from != zlib.crc32(_source(package, name)):
        logger.warning("the C kernels (%s) are those of another version: %s", name, REMEDY)
        return None
    for function, types in arguments.items():
        functions[function].argtypes, functions[function].restype = types, None
    return library


def _source(package: str, name: str) -> bytes:
    parts = [file for file in files(package).iterdir() if file.name.startswith(f"{name}_") and file.name.endswith(".h")]
    parts.sort(key=lambda file: file.name)
    return b"".join(file.read_bytes() for file in (files(package) / f"{name}.c", *parts))
