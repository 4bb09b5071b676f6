"""The network. Letters used for shapes, in every docstring and annotation:

B batch, N samples, T frames, C convolution channels, D model width, H heads, M masked frames, K negatives,
G codebooks (groups), V codes in each codebook, E width of code vectors and targets, U labels, L transformer blocks,
S sub-batches.

From the waveform up: `feature_encoder.py` (or `log_mel.py`, `kaldi_fbank.py`), `transformer.py`, `length_adapter.py`, `wav2vec2.py`
(all together), `quantizer.py`, `pretraining.py`; `speech_model.py` is what a user holds. What a CPU computes faster stands
in `cpu/`.
"""
