"""Transcripts to symbols and back."""
