"""How well drawn images fit their texts in the eyes of a CLIP model, which is given as a local checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mmmoe.models.towers.clip_checkpoint import read_checkpoint
from mmmoe.paths import resolve


class ClipJudge:
    """A CLIP model of open_clip; scores of different ones do not compare."""

    def __init__(self, model: Any, tokenise: Callable[[list[str]], Tensor], batch: int = 64) -> None:
        """Takes a model in.

        Args:
            model: with `visual`, `encode_image` and `encode_text`, as open_clip's.
            tokenise: texts to ids.
            batch: images or texts that it sees at once.
        """
        from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD  # here: most exams have no such judge

        self._model = model.eval().requires_grad_(False)
        self._tokenise = tokenise
        self._batch = batch
        self._size = int(torch.tensor(model.visual.image_size).max())
        colours = {"mean": OPENAI_DATASET_MEAN, "std": OPENAI_DATASET_STD} | (
            getattr(model.visual, "preprocess_cfg", None) or {}
        )
        self._mean, self._std = (torch.tensor(colours[name]).view(3, 1, 1) for name in ("mean", "std"))

    @classmethod
    def load(cls, name: str, path: str | Path, fields: dict[str, Any] | None = None) -> ClipJudge:
        """Returns the judge of a checkpoint.

        Args:
            name: architecture of open_clip, for example ViT-L-14.
            path: safetensors, or a plain state dict of torch; nothing is downloaded.
            fields: embed_dim, vision_cfg and text_cfg of an architecture that is not built in.

        Raises:
            ValueError: The architecture is not known or wants other files, or the checkpoint is not its own.
        """
        import open_clip
        from open_clip.tokenizer import SimpleTokenizer

        fields = fields or open_clip.get_model_config(name)
        if fields is None:
            raise ValueError(f"open_clip knows no architecture {name!r}; ViT-L-14 is one")
        vision, text = fields["vision_cfg"], fields["text_cfg"]
        if fields.get("custom_text") or "timm_model_name" in vision or {"hf_model_name", "hf_tokenizer_name"} & {*text}:
            raise ValueError(f"{name} is no plain CLIP: its text half or tokenizer is another's; choose e.g. ViT-L-14")
        model = open_clip.CLIP(fields["embed_dim"], vision, text, quick_gelu=fields.get("quick_gelu", False))
        state = read_checkpoint(resolve(path), name, "the CLIP judge's checkpoint")
        own = model.state_dict()
        wrong = sorted({k for k in own.keys() | state.keys() if k not in own or k not in state} - {"logit_bias"})
        if wrong:
            raise ValueError(f"{path} does not fit {name}: tensors missing or unknown, the first are {wrong[:5]}")
        model.load_state_dict({key: tensor.float() for key, tensor in state.items() if key in own})
        return cls(model, SimpleTokenizer(context_length=text.get("context_length", 77)))

    @torch.inference_mode()
    def images(self, pixels_I3HW: Tensor) -> Tensor:
        """Returns features (I, C) of length 1; they also serve as an extractor's for a Frechet distance."""
        parts = [self._model.encode_image(self._fitted(part)) for part in torch.split(pixels_I3HW, self._batch)]
        return F.normalize(torch.cat(parts).float(), dim=-1)

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Returns features (I, C) of length 1."""
        ids_IL = self._tokenise(list(texts)).to(next(self._model.parameters()).device)
        parts = [self._model.encode_text(part) for part in torch.split(ids_IL, self._batch)]
        return F.normalize(torch.cat(parts).float(), dim=-1)

    def _fitted(self, pixels_I3HW: Tensor) -> Tensor:
        """Returns images as CLIP takes them: short side resized (bicubic), middle cut out, colours normalised."""
        weight = next(self._model.parameters())
        height, width = pixels_I3HW.shape[-2:]
        scale = self._size / min(height, width)
        sides = (max(self._size, round(height * scale)), max(self._size, round(width * scale)))
        pixels_I3HW = F.interpolate(pixels_I3HW.float(), sides, mode="bicubic", antialias=True).clamp(0, 1)
        top, left = ((side - self._size) // 2 for side in sides)
        cut_I3HW = pixels_I3HW[..., top : top + self._size, left : left + self._size].cpu()
        return ((cut_I3HW - self._mean) / self._std).to(weight.device, weight.dtype)


def clip_score(pixels_I3HW: Tensor, texts: Sequence[str], judge: ClipJudge | None) -> float | None:
    """Returns the mean of 100 cos(image, text), where below 0 counts as 0 (arXiv 2104.08718 with weight 100).

    None (not run) where there is no judge.

    Raises:
        ValueError: There are not as many texts as images.
    """
    if judge is None:
        return None
    if len(texts) != len(pixels_I3HW) or not texts:
        raise ValueError(f"{len(pixels_I3HW)} images and {len(texts)} texts; a CLIP score needs one text an image")
    cosine_I = (judge.images(pixels_I3HW) * judge.texts(texts)).sum(-1)
    return float(100.0 * cosine_I.clamp(min=0.0).mean())
