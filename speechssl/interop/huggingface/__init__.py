"""Hugging Face's folders."""

from speechssl.interop.huggingface.folder import read_huggingface, write_huggingface

__all__ = ["read_huggingface", "write_huggingface"]
