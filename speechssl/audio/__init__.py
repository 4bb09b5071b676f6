"""Audio files to mono float32 at 16 kHz."""
