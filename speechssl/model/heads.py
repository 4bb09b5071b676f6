"""What stands on top of the backbone: the CTC head."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from speechssl.model.layers import Dropout


class CTCHead(nn.Module):
    """Dropout and one linear layer to the vocabulary; weight Xavier uniform, bias 0 (fairseq's wav2vec2_asr)."""

    def __init__(self, dim: int, num_symbols: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = Dropout(dropout)
        self.linear = nn.Linear(dim, num_symbols)
        nn.init.xavier_uniform_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, frames: Float[Tensor, "B T D"]) -> Float[Tensor, "B T V"]:
        """Give the logits of each frame; frames do not influence each other."""
        logits: Tensor = self.linear(self.dropout(frames))
        return logits
