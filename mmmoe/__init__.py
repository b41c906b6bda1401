"""mmmoe: the staged training pipeline for multimodal mixture-of-LoRA-experts models."""

__version__ = "0.1.0"
