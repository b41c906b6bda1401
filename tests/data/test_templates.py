import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mmmoe.config.ids import IGNORE_ID, IMAGE_ID
from mmmoe.data.record import Turn
from mmmoe.data.spec import TemplateSpec
from mmmoe.data.template import Encoded, Template, load_tokenizer, repeat_placeholders

DIALOGUE = [
    Turn("human", "What colour ?\n<image>"),
    Turn("gpt", "red"),
    Turn("human", "it ?"),
    Turn("gpt", "no and yes"),
]
CHAT = (
    "{% for m in messages %}[{{ m.role }}] {{ m.content }} </s>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def targets(encoded, tokenizer):
    return tokenizer.convert_ids_to_tokens([i for i in encoded.labels if i != IGNORE_ID])


@pytest.mark.parametrize("kind", ["vicuna_v1", "chat"])
def test_answers_and_their_ends_are_the_targets(kind, tokenizer):
    tokenizer.chat_template = CHAT
    template = Template(TemplateSpec(kind=kind), tokenizer)
    encoded = template.encode(DIALOGUE)
    assert targets(encoded, tokenizer) == ["red", "</s>", "no", "and", "yes", "</s>"]
    assert encoded.input_ids.count(IMAGE_ID) == 1
    assert all(label in (IGNORE_ID, i) for i, label in zip(encoded.input_ids, encoded.labels, strict=True))
    for rounds in (2, 4):
        prompt = template.prompt(DIALOGUE[: rounds - 1])
        first = [i for i, label in enumerate(encoded.labels) if label != IGNORE_ID][0 if rounds == 2 else 2]
        assert encoded.input_ids[:first] == prompt


def test_first_token_stands_once(tokenizer):
    encoded = Template(TemplateSpec(), tokenizer).encode(DIALOGUE)
    assert encoded.input_ids.count(tokenizer.bos_token_id) == 1
    assert encoded.input_ids[0] == tokenizer.bos_token_id


def test_one_image_moves_to_the_front_and_several_stay(tokenizer):
    template = Template(TemplateSpec(system=""), tokenizer)
    assert template.render(DIALOGUE[:2]).text == "USER: <image>\nWhat colour ? ASSISTANT: red</s>"
    several = [Turn("human", "Compare <image> and <image>"), Turn("gpt", "no")]
    assert template.render(several).text == "USER: Compare <image> and <image> ASSISTANT: no</s>"
    released = Template(TemplateSpec(system="", as_released=True), tokenizer)
    assert released.render(several).text == "USER: <image>\nCompare  and ASSISTANT: no</s>"


def test_plain_is_image_then_caption(tokenizer):
    encoded = Template(TemplateSpec(kind="plain"), tokenizer).encode(DIALOGUE[:2])
    assert encoded.input_ids == [tokenizer.bos_token_id, IMAGE_ID, tokenizer.convert_tokens_to_ids("red")]
    assert encoded.labels == [IGNORE_ID, IGNORE_ID, tokenizer.convert_tokens_to_ids("red")]
    assert Template(TemplateSpec(kind="plain"), tokenizer).prompt(DIALOGUE[:1]) == encoded.input_ids[:2]


def test_cut_on_the_right(tokenizer):
    whole = Template(TemplateSpec(), tokenizer).encode(DIALOGUE)
    cut = Template(TemplateSpec(max_length=12), tokenizer).encode(DIALOGUE)
    assert (cut.input_ids, cut.labels) == (whole.input_ids[:12], whole.labels[:12])


def test_system_is_replaced(tokenizer):
    text = Template(TemplateSpec(system="Be kind."), tokenizer).render(DIALOGUE).text
    assert text.startswith("Be kind. USER:")


def test_empty_answer_has_no_target(tokenizer):
    encoded = Template(TemplateSpec(), tokenizer).encode([Turn("human", "it ?"), Turn("gpt", "")])
    assert set(encoded.labels) == {IGNORE_ID}


@pytest.mark.parametrize(
    "roles", [["human"], ["gpt", "human"], ["human", "human"], ["human", "gpt", "gpt"], ["system", "gpt"], []]
)
def test_turns_must_alternate(roles, tokenizer):
    with pytest.raises(ValueError, match=r"alternate|needs a human turn"):
        Template(TemplateSpec(), tokenizer).encode([Turn(role, "yes") for role in roles])


def test_prompt_ends_with_the_human(tokenizer):
    with pytest.raises(ValueError, match="human turn"):
        Template(TemplateSpec(), tokenizer).prompt(DIALOGUE)


def test_chat_without_a_chat_template_is_refused(tokenizer):
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="chat_template"):
        Template(TemplateSpec(kind="chat"), tokenizer)


def test_chat_template_that_rewrites_history_is_refused(tokenizer):
    tokenizer.chat_template = "{{ messages | length }}" + CHAT
    with pytest.raises(ValueError, match="rewrites earlier turns"):
        Template(TemplateSpec(kind="chat"), tokenizer).encode(DIALOGUE)
    tokenizer.chat_template = None


def save(folder, **special):
    backend = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, "a": 2}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(folder)
    return folder


def test_padding_falls_back_to_unknown_then_end(tmp_path):
    assert load_tokenizer(save(tmp_path / "a", unk_token="<unk>", eos_token="</s>")).pad_token_id == 0
    assert load_tokenizer(save(tmp_path / "b", eos_token="</s>")).pad_token_id == 1
    with pytest.raises(ValueError, match="pad_token"):
        load_tokenizer(save(tmp_path / "c"))


def test_missing_tokenizers_say_what_to_do(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        load_tokenizer(tmp_path / "absent")
    with pytest.raises(ValueError, match="holds no tokenizer"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match="cannot be read"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer.model").write_bytes(b"junk")
    with pytest.raises(ValueError, match="no SentencePiece model"):
        load_tokenizer(tmp_path)


MEDIA = "<speech> What <image> colour <audio> is <video>"


@pytest.mark.parametrize("kind", ["vicuna_v1", "chat", "plain"])
def test_every_mark_becomes_its_id(kind, tokenizer):
    tokenizer.chat_template = CHAT if kind == "chat" else None
    template = Template(TemplateSpec(kind=kind), tokenizer)
    encoded = template.encode([Turn("human", MEDIA), Turn("gpt", "red")])
    placed = [token for token in encoded.input_ids if token < 0]
    # A turn's one image goes in front, as in LLaVA; what else there is keeps its place.
    assert placed == [-200, -500, -300, -400]
    assert all(label == IGNORE_ID for token, label in zip(encoded.input_ids, encoded.labels, strict=True) if token < 0)


def test_placeholders_are_repeated_by_chunks():
    encoded = Encoded([1, -500, 5, -200, -500, 7], [-100, -100, -100, -100, -100, 7])
    repeated = repeat_placeholders(encoded, {-500: [2, 3]})
    assert repeated.input_ids == [1, -500, -500, 5, -200, -500, -500, -500, 7]
    assert repeated.labels == [-100] * 8 + [7]
    assert repeat_placeholders(encoded, {}) == encoded
