"""What evaluation asks of a model, its template and its guide; it knows nothing else of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

from mmmoe.data.record import Turn


class Encoded(Protocol):
    """A dialogue as ids and labels."""

    @property
    def input_ids(self) -> list[int]:
        """All ids, a negative one (MEDIA_IDS) where an item of media goes."""

    @property
    def labels(self) -> list[int]:
        """The id itself on targets, IGNORE_ID elsewhere."""


class Template(Protocol):
    """Turns a dialogue into ids."""

    tokenizer: Any
    letters: Any
    """Finds the letters that a prompt asks to be shown, of a model that draws; else None."""

    def encode(self, turns: Sequence[Turn], /) -> Encoded:
        """Returns ids and labels; only the assistant's answer has labels."""

    def prompt(self, turns: Sequence[Turn], /) -> list[int]:
        """Returns the ids up to where the assistant begins to answer."""

    def prompt_to_draw(self, turns: Sequence[Turn], /) -> list[int]:
        """Returns the ids up to where an image begins that is the answer."""


class Model(Protocol):
    """A multimodal language model."""

    training: bool
    max_positions: int
    """Length of the longest sequence that it reads."""
    canvas: tuple[int, int] | None
    """Height and width of the images that it draws; None where it draws none."""

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of media it takes."""

    def positions(self, kind: str) -> int:
        """Returns how many positions a placeholder takes, by its kind, or by GLANCE_VIEW in a routing pass."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Returns a ModelOutput for input_ids_BT, attention_mask_BT, labels_BT and features."""

    def eval(self) -> Any:
        """Switches dropout off."""

    def train(self, mode: bool = True) -> Any:
        """Switches dropout on again."""

    def tower_of(self, view: str) -> Any:
        """Returns the encoder of a view."""

    def encode(self, view: str, media: Tensor) -> Tensor:
        """Returns the tower's features of what a view shows."""

    def generate(self, *args: Any, **kwargs: Any) -> list[list[int]]:
        """Returns new ids for left-padded prompts: max_new_tokens, eos_id and pad_id are given."""

    def draw(self, *args: Any, **kwargs: Any) -> Tensor:
        """Returns the image (B, 3, H, W) that each left-padded prompt asks for: steps, guidance and seeds are given.

        Raises:
            TypeError: The model draws no images.
        """


class QuestionGuide(Protocol):
    """Chooses the views of a question's image, for families that have vision experts."""

    @property
    def experts(self) -> tuple[str, ...]:
        """Names of the experts, in the order of a routing."""

    def of_question(self, text: str, routing: Sequence[int] | None, /) -> tuple[frozenset[str], Mapping[str, Tensor]]:
        """Returns the views that are looked at, and what goes with every image: one row by view."""

    def prompt(self, text: str, /) -> str:
        """Returns what the model is asked in a routing pass about a question."""

    def read(self, answer: str, /) -> tuple[int, ...]:
        """Returns the routing that it answered."""
