"""fairseq's `.pt` files."""

from speechssl.interop.fairseq.checkpoint import read_fairseq, write_fairseq

__all__ = ["read_fairseq", "write_fairseq"]
