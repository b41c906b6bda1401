"""The CLIP score: cosines of a model that is given, loaded from a local checkpoint, or none."""

from __future__ import annotations

import open_clip
import pytest
import torch
from open_clip.tokenizer import SimpleTokenizer
from safetensors.torch import save_file
from torch import nn

from mmmoe.evaluation.clip_score import ClipJudge, clip_score
from mmmoe.evaluation.frechet import distance_of_sets

TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 64, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


class Colours(nn.Module):
    """Images and texts as amounts of red, green and blue."""

    class Visual:
        image_size = (4, 4)

    def __init__(self):
        super().__init__()
        self.visual = self.Visual()
        self.scale = nn.Parameter(torch.ones(()))

    def encode_image(self, pixels):
        return pixels.mean((2, 3)) * self.scale

    def encode_text(self, ids):
        return ids.float()


def judge():
    made = ClipJudge(Colours(), lambda texts: torch.tensor([[float(c in text) for c in "rgb"] for text in texts]))
    made._mean, made._std = torch.zeros(3, 1, 1), torch.ones(3, 1, 1)
    return made


def test_score_is_the_mean_cosine_and_never_negative():
    red, green = (torch.eye(3)[n].view(3, 1, 1).expand(3, 8, 12) for n in (0, 1))
    pixels = torch.stack([red, green, green])
    assert clip_score(pixels, ["r", "g", "b"], judge()) == pytest.approx(200 / 3, abs=1e-3)
    assert clip_score(pixels[:1], ["rg"], judge()) == pytest.approx(100 / 2**0.5, abs=1e-3)
    opposite = judge()
    opposite._model.scale.data.fill_(-1.0)
    assert clip_score(pixels, ["r", "g", "g"], opposite) == 0.0


def test_without_a_judge_it_is_not_run():
    assert clip_score(torch.zeros(1, 3, 4, 4), ["r"], None) is None
    with pytest.raises(ValueError, match="1 images and 2 texts"):
        clip_score(torch.zeros(1, 3, 4, 4), ["r", "g"], judge())


def test_the_middle_of_an_image_is_seen():
    pixels = torch.zeros(1, 3, 4, 12)
    pixels[:, 0, :, 4:8] = 1.0  # the outer thirds of a wide image are cut off
    pixels[:, 1, :, :2] = pixels[:, 2, :, 10:] = 1.0
    torch.testing.assert_close(judge().images(pixels), torch.tensor([[1.0, 0, 0]]), atol=1e-3, rtol=0)


def test_a_checkpoint_is_loaded_and_scores_as_open_clip_does(tmp_path):
    torch.manual_seed(0)
    model = open_clip.CLIP(TINY["embed_dim"], TINY["vision_cfg"], TINY["text_cfg"]).eval()
    save_file(model.state_dict(), tmp_path / "clip.safetensors")
    loaded = ClipJudge.load("tiny", tmp_path / "clip.safetensors", TINY)
    pixels, texts = torch.rand(5, 3, 16, 16), ["a red cup", "SALE", "a", "b", "c"]
    mean, std = (torch.tensor(getattr(open_clip, f"OPENAI_DATASET_{n}")).view(3, 1, 1) for n in ("MEAN", "STD"))
    with torch.no_grad():
        images = model.encode_image((pixels - mean) / std, normalize=True)
        written = model.encode_text(SimpleTokenizer(context_length=16)(texts), normalize=True)
    want = 100 * (images * written).sum(-1).clamp(min=0).mean()
    assert clip_score(pixels, texts, loaded) == pytest.approx(float(want), abs=1e-3)
    assert distance_of_sets(pixels, pixels, loaded.images) == pytest.approx(0.0, abs=1e-6)


def test_what_does_not_fit_is_told(tmp_path):
    with pytest.raises(ValueError, match="knows no architecture 'ViT-X'"):
        ClipJudge.load("ViT-X", "nowhere")
    with pytest.raises(ValueError, match="ViT-B-16-SigLIP is no plain CLIP"):
        ClipJudge.load("ViT-B-16-SigLIP", "nowhere")
    with pytest.raises(ValueError, match=r"the CLIP judge's checkpoint .* does not exist"):
        ClipJudge.load("tiny", tmp_path / "none.safetensors", TINY)
    save_file({"visual.proj": torch.zeros(2)}, tmp_path / "part.safetensors")
    with pytest.raises(ValueError, match="does not fit tiny"):
        ClipJudge.load("tiny", tmp_path / "part.safetensors", TINY)
