"""The network. Letters used for shapes, in every docstring and annotation:

B batch, N samples, T frames, C convolution channels, D model width, H heads, M masked frames, K negatives,
G codebooks (groups), V codes in each codebook, U labels, L transformer blocks, S sub-batches.
"""
