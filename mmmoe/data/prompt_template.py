"""A dialogue up to its answer, as samples: what a judge is asked to write itself."""

from __future__ import annotations

from collections.abc import Sequence

from mmmoe.config.ids import IGNORE_ID, IMAGE_ID
from mmmoe.data.record import Turn
from mmmoe.data.spec import TemplateSpec
from mmmoe.data.template import Encoded, Template
from mmmoe.data.tokenizer import Tokenizer


class PromptTemplate(Template):
    """Dialogues that end with the human's turn to ids without targets, none of them cut."""

    def __init__(self, spec: TemplateSpec, tokenizer: Tokenizer, *, image: int, longest: int) -> None:
        """Checks that the tokenizer can do what the template needs.

        Args:
            spec: which template.
            tokenizer: of the language model.
            image: positions of an image.
            longest: positions of a prompt at most.
        """
        super().__init__(spec, tokenizer)
        self._image = image
        self._longest = longest

    def encode(self, turns: Sequence[Turn]) -> Encoded:
        """Returns the ids of a prompt.

        Raises:
            ValueError: It does not end with the human's turn, or is too long to be answered.
        """
        ids = self.prompt(turns)
        length = len(ids) + ids.count(IMAGE_ID) * (self._image - 1)
        if length > self._longest:
            raise ValueError(f"a prompt of {length} positions is longer than the model's {self._longest}")
        return Encoded(ids, [IGNORE_ID] * len(ids))
