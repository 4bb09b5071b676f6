"""What readers of binary files raise for bytes that are no such file, and how that is said in one line."""

from __future__ import annotations

import struct
import zipfile

from safetensors import SafetensorError

DAMAGE = (
    OSError, EOFError, SafetensorError, RuntimeError, ValueError, LookupError, TypeError, AttributeError,
    ArithmeticError, AssertionError, MemoryError, struct.error, zipfile.BadZipFile,
)  # fmt: skip
"""What readers of binary files raise for bytes that are no such file: what is described may trip over any type."""


def first_line(error: Exception) -> str:
    """Give the first line of an error's message, or its kind where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
