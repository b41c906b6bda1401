"""A gated feed-forward block whose experts are LoRA updates of one frozen block: sum_k g_k FFN(x; W + s B_e A_e)."""
