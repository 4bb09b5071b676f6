"""Transcripts to symbols and back."""

from speechssl.text.vocabulary import FAIRSEQ_SYMBOLS, Vocabulary, build_vocabulary, find_case

__all__ = ["FAIRSEQ_SYMBOLS", "Vocabulary", "build_vocabulary", "find_case"]
