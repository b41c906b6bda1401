"""LoRA experts applied to routed rows: y[t] += sum_j gate[t,j] s B_e A_e x[t]."""
