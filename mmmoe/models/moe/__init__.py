"""The sparse feed-forward block: gate, experts, and their parallel form; experts may carry LoRA."""
