"""Dialogues become token ids and labels: only what the assistant says is a target.

A template renders the dialogue to one text and knows which stretches of it are answers. Labels follow from the
stretches: a token is a target if it lies beyond what the text up to the answer tokenises to, so no length is ever
guessed. On dialogues that LLaVA-1.5's code masks well the outcome is the same, id by id. Where its bookkeeping fails
(an answer that contains " ASSISTANT: ", an empty human turn) it drops the whole dialogue, and of several images in one
turn it keeps one; we keep both, unless the spec says `as_released`. A turn's one image is put in front of its text, as
LLaVA does; videos, speech and audio stay where the text has them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmmoe.config.ids import IGNORE_ID, IMAGE_ID, MEDIA_MARKS
from mmmoe.data.letters import Letters
from mmmoe.data.media import ID_OF_MARK, MARKED
from mmmoe.data.record import Turn
from mmmoe.data.released import released_labels
from mmmoe.data.spec import TemplateSpec
from mmmoe.data.tokenizer import Tokenizer, load_tokenizer

__all__ = ["Encoded", "Rendered", "Template", "load_tokenizer"]

VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
IMAGE_MARK = MEDIA_MARKS["image"]
CHAT_ROLES = {"human": "user", "gpt": "assistant"}


@dataclass(frozen=True)
class Encoded:
    """A dialogue as a model takes it, each item of media still one id."""

    input_ids: list[int]
    labels: list[int]
    """The id itself on targets, IGNORE_ID elsewhere; not shifted."""

    @property
    def drawn(self) -> list[int]:
        """Numbers of the images, among those of the dialogue, that are to be drawn."""
        of_images = [label for token, label in zip(self.input_ids, self.labels, strict=True) if token == IMAGE_ID]
        return [number for number, label in enumerate(of_images) if label == IMAGE_ID]


@dataclass(frozen=True)
class Rendered:
    """A dialogue as text."""

    text: str
    answers: tuple[tuple[int, int], ...]
    """Start and end of each stretch that is a target, in characters."""


class Template:
    """Turns of a dialogue to ids and labels, by one of three templates."""

    def __init__(self, spec: TemplateSpec, tokenizer: Tokenizer, *, draws: bool = False) -> None:
        """Checks that the tokenizer can do what the template needs.

        Args:
            spec: which template.
            tokenizer: of the language model.
            draws: whether the model draws images, so that those in answers are targets.

        Raises:
            ValueError: It has no end token, or no chat template for `chat`.
        """
        self.spec = spec
        self.tokenizer = tokenizer
        self._targets = frozenset([IMAGE_ID] if draws else [])
        self.letters = Letters(tokenizer) if draws else None
        if spec.kind == "vicuna_v1" and not tokenizer.eos_token:
            raise ValueError("template vicuna_v1 ends answers with the tokenizer's eos token, but it has none; set one")
        if spec.kind == "chat" and not getattr(tokenizer, "chat_template", None):
            raise ValueError("template chat needs a tokenizer with a chat_template; use vicuna_v1 or add one to it")
        self._render: Callable[[Sequence[Turn]], Rendered] = {
            "vicuna_v1": self._vicuna,
            "plain": self._plain,
            "chat": self._chat,
        }[spec.kind]
        # The chat template of a tokenizer writes its own first token.
        self._first = [] if spec.kind == "chat" or tokenizer.bos_token_id is None else [tokenizer.bos_token_id]

    @property
    def pad_id(self) -> int:
        """The id that fills shorter rows of a batch."""
        assert self.tokenizer.pad_token_id is not None, "load_tokenizer gives every tokenizer one"
        return self.tokenizer.pad_token_id

    def encode(self, turns: Sequence[Turn]) -> Encoded:
        """Returns ids and labels of a whole dialogue, cut on the right at `max_length`.

        Raises:
            ValueError: The turns do not alternate from human to gpt.
        """
        rendered = self._render(self._tidy(turns))
        ids = self.ids(rendered.text)
        if self.spec.as_released and self.spec.kind == "vicuna_v1":
            labels = self._targets_of(
                released_labels(rendered.text, ids, self.ids, self.tokenizer, self.spec.max_length)
            )
        else:
            labels = [IGNORE_ID] * len(ids)
            for start, end in rendered.answers:
                first = _shared(self.ids(rendered.text[:start]), ids)
                last = len(ids) if end == len(rendered.text) else _shared(self.ids(rendered.text[:end]), ids)
                labels[first:last] = self._targets_of(ids[first:last])
        return Encoded(ids[: self.spec.max_length], labels[: self.spec.max_length])

    def prompt(self, turns: Sequence[Turn]) -> list[int]:
        """Returns the ids up to where the assistant's next answer begins; the last turn is the human's.

        Raises:
            ValueError: The last turn is not the human's.
        """
        if not turns or turns[-1].role != "human":
            raise ValueError("a prompt ends with a human turn; leave the answer to be generated out")
        rendered = self._render(self._tidy([*turns, Turn("gpt", "")]))
        return self.ids(rendered.text[: rendered.answers[-1][0]])

    def prompt_to_draw(self, turns: Sequence[Turn]) -> list[int]:
        """Returns the ids up to where an image begins that is the answer; in training the same stand before it.

        Raises:
            ValueError: The last turn is not the human's.
        """
        if not turns or turns[-1].role != "human":
            raise ValueError("a prompt ends with a human turn; leave the answer to be drawn out")
        ids = self.ids(self._render(self._tidy([*turns, Turn("gpt", IMAGE_MARK)])).text)
        return ids[: len(ids) - 1 - ids[::-1].index(IMAGE_ID)]

    def render(self, turns: Sequence[Turn]) -> Rendered:
        """Returns the text that is tokenised, for previews."""
        return self._render(self._tidy(turns))

    def ids(self, text: str) -> list[int]:
        """Returns the ids of a rendered text: each stretch between marks on its own, as LLaVA-1.5 does."""
        ids = list(self._first)
        for part in MARKED.split(text):
            if part in ID_OF_MARK:
                ids.append(ID_OF_MARK[part])
            elif part:
                ids.extend(self._stretch(part))
        return ids

    def _targets_of(self, ids: Sequence[int]) -> list[int]:
        """Returns the ids without those of media, but for images that the model draws."""
        return [i if i >= 0 or i in self._targets else IGNORE_ID for i in ids]

    def _stretch(self, text: str) -> list[int]:
        backend: Any = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is None:
            return self.tokenizer.encode(text, add_special_tokens=False)
        # Past transformers' wrapper: the same ids at a fraction of its cost for short texts.
        return list(backend.encode(text, add_special_tokens=False).ids)

    def _tidy(self, turns: Sequence[Turn]) -> list[Turn]:
        """Drops a leading gpt turn, checks that roles alternate and puts a turn's one image in front of its text."""
        tidy = [*turns[1:]] if turns and turns[0].role == "gpt" else [*turns]
        if len(tidy) < 2:
            raise ValueError(f"a dialogue needs a human turn and an answer, got {[turn.role for turn in turns]}")
        for number, turn in enumerate(tidy):
            expected = ("human", "gpt")[number % 2]
            if turn.role != expected:
                raise ValueError(f"turn {number} is from {turn.role!r}, expected {expected!r}; make turns alternate")
        return [Turn(turn.role, self._image_first(turn.text)) for turn in tidy]

    def _image_first(self, text: str) -> str:
        num_images = text.count(IMAGE_MARK)
        if num_images == 0 or (num_images > 1 and not self.spec.as_released):
            return text  # among several images the place in the sentence says which is meant
        return f"{IMAGE_MARK}\n{text.replace(IMAGE_MARK, '').strip()}".strip()

    def _vicuna(self, turns: Sequence[Turn]) -> Rendered:
        system = VICUNA_SYSTEM if self.spec.system is None else self.spec.system
        text = f"{system} " if system else ""
        answers: list[tuple[int, int]] = []
        for turn in turns:
            text += "USER:" if turn.role == "human" else "ASSISTANT:"
            start = len(text)
            if turn.text:
                text += f" {turn.text}" + (" " if turn.role == "human" else f"{self.tokenizer.eos_token}")
            if turn.role == "gpt":
                answers.append((start, len(text)))
        return Rendered(text, tuple(answers))

    def _plain(self, turns: Sequence[Turn]) -> Rendered:
        """Renders the media, then the caption and a line break; what the human says besides is left out."""
        media = "".join(mark for turn in turns[::2] for mark in MARKED.findall(turn.text))
        caption = turns[1].text + "\n" if turns[1].text else ""
        return Rendered(media + caption, ((len(media), len(media) + len(caption)),))

    def _chat(self, turns: Sequence[Turn]) -> Rendered:
        """Renders with the tokenizer's own template, turn by turn, to learn where each answer starts and ends."""
        tokenizer: Any = self.tokenizer
        messages = [{"role": CHAT_ROLES[turn.role], "content": turn.text} for turn in turns]
        if self.spec.system:
            messages.insert(0, {"role": "system", "content": self.spec.system})

        def render(count: int, is_open: bool) -> str:
            return str(tokenizer.apply_chat_template(messages[:count], tokenize=False, add_generation_prompt=is_open))

        is_prompt = turns[-1].text == ""
        text = render(len(messages) - 1, True) if is_prompt else render(len(messages), False)
        answers: list[tuple[int, int]] = []
        for count, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = render(count, True)
            after = text if is_prompt and count == len(messages) - 1 else render(count + 1, False)
            if not text.startswith(after) or not after.startswith(before):
                raise ValueError(
                    "the tokenizer's chat template rewrites earlier turns when later ones are added, so its answers "
                    "cannot be marked; split the dialogue into single rounds or use vicuna_v1"
                )
            answers.append((len(before), len(after)))
        return Rendered(text, tuple(answers))


def _shared(first: Sequence[int], second: Sequence[int]) -> int:
    """Returns how many ids two sequences have in common from the start."""
    for number, (a, b) in enumerate(zip(first, second, strict=False)):
        if a != b:
            return number
    return min(len(first), len(second))


def repeat_placeholders(encoded: Encoded, chunks: Mapping[int, Sequence[int]]) -> Encoded:
    """Returns the dialogue with each placeholder repeated as often as its item has chunks.

    Args:
        encoded: One placeholder an item.
        chunks: By id, the chunks of each item in reading order; other ids stay as they are.
    """
    waiting = {token: iter(counts) for token, counts in chunks.items()}
    input_ids: list[int] = []
    labels: list[int] = []
    for token, label in zip(encoded.input_ids, encoded.labels, strict=True):
        count = next(waiting[token]) if token in waiting else 1
        input_ids += [token] * count
        labels += [label] * count
    return Encoded(input_ids, labels)
