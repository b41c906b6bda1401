"""From a draw to a sample: read the record, decode or look up its images, apply the template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from mmmoe import paths
from mmmoe.config.ids import IGNORE_ID, IMAGE_ID
from mmmoe.data.features import FeatureStore
from mmmoe.data.index import Entry
from mmmoe.data.quarantine import BadSample, Quarantine
from mmmoe.data.sample import Sample
from mmmoe.data.shards import IMAGE_MARK, ShardSet
from mmmoe.data.spec import MixtureSpec
from mmmoe.data.template import Encoded, Template
from mmmoe.data.transforms import ImageTransform


@dataclass(frozen=True)
class Source:
    """A named shard set of a mixture."""

    name: str
    domain: str
    """Tag of samples whose shard gives none."""
    shards: ShardSet
    features: FeatureStore | None = None
    """Where its images' features lie; None means that images are decoded and the tower runs in the model."""


def open_sources(spec: MixtureSpec, beside: Path | None = None) -> list[Source]:
    """Returns the declared sources, opened.

    Raises:
        ValueError: Shards are missing or damaged, or two sources have one name.
    """
    names = [source.name for source in spec.sources]
    if len(set(names)) != len(names):
        raise ValueError(f"source names of a mixture must differ, got {names}")
    return [Source(s.name, s.domain, ShardSet(paths.resolve(s.shards, beside))) for s in spec.sources]


def with_features(sources: Sequence[Source], folder: str | Path, key: str) -> list[Source]:
    """Returns the sources with their images taken from the feature cache of the tower called `key`."""
    return [replace(source, features=FeatureStore(folder, key, source.shards)) for source in sources]


class Dataset:
    """Samples of several sources by (source, index); no state but the list of bad ones."""

    def __init__(
        self,
        sources: Sequence[Source],
        template: Template,
        transform: ImageTransform | None,
        quarantine: Quarantine,
        *,
        max_positions: int | None = None,
        image_positions: int = 1,
    ) -> None:
        """Puts the parts together.

        Args:
            sources: Where records lie.
            template: Makes ids and labels of them.
            transform: Makes pixels of their images.
            quarantine: Takes the bad ones.
            max_positions: Where the model cuts a sequence; labels beyond are no targets, so that they are not counted.
            image_positions: Positions that the model gives one image.

        Raises:
            ValueError: Neither a transform nor features are given for images.
        """
        for source in sources:
            if transform is None and source.features is None and any(s.header.images for s in source.shards.shards):
                raise ValueError(f"source {source.name} has images; give an image transform or its feature store")
        self.sources = list(sources)
        self.template = template
        self._transform = transform
        self._quarantine = quarantine
        self._max_positions, self._image_positions = max_positions, image_positions

    @property
    def sizes(self) -> list[int]:
        """Samples of each source."""
        return [len(source.shards) for source in self.sources]

    def get(self, source: int, index: int) -> Sample | None:
        """Returns a sample, or None when it is unreadable (it is then in the quarantine).

        Raises:
            ValueError: More samples are unreadable than the budget allows.
        """
        origin = self.sources[source]
        number, _ = origin.shards.locate(index)
        try:
            return self._read(source, index, number)
        except ValueError as error:
            # A damaged index line has no key to tell; its number names it as well.
            key = self._key(origin, index)
            shard = origin.shards.shards[number].path.name
            self._quarantine.add(BadSample(origin.name, shard, key, str(error)))
            return None

    def _read(self, source: int, index: int, shard: int) -> Sample:
        origin = self.sources[source]
        entry = origin.shards.entry(index)
        record = origin.shards.record(index, media=origin.features is None)
        num_marks = sum(turn.text.count(IMAGE_MARK) for turn in record.turns)
        if num_marks != len(entry.images):
            raise ValueError(f"{num_marks} {IMAGE_MARK} in the text, but {len(entry.images)} images")
        encoded = self.template.encode(record.turns)
        # The cut at max_length, or the template's first-turn rule, may have taken placeholders away.
        num_images = encoded.input_ids.count(IMAGE_ID)
        sample = Sample(
            input_ids=encoded.input_ids,
            labels=self._within_reach(encoded),
            source=source,
            key=record.key,
            domain=record.domain or origin.domain,
        )
        if origin.features is not None:
            return replace(sample, features=self._features(origin.features, shard, entry, num_images))
        if num_images == 0:
            return sample
        assert self._transform is not None, "asked at construction"
        return replace(sample, images=tuple(self._transform(image) for image in record.images[:num_images]))

    def _within_reach(self, encoded: Encoded) -> list[int]:
        """Returns the labels without those that the model will cut off."""
        if self._max_positions is None:
            return encoded.labels
        place, labels = 0, []
        for token, label in zip(encoded.input_ids, encoded.labels, strict=True):
            labels.append(label if place < self._max_positions else IGNORE_ID)
            place += self._image_positions if token == IMAGE_ID else 1
        return labels

    def _features(self, store: FeatureStore, shard: int, entry: Entry, count: int) -> tuple[Tensor, ...]:
        return tuple(store.get(shard, entry.first_image + number) for number in range(count))

    def _key(self, source: Source, index: int) -> str:
        try:
            return source.shards.entry(index).key
        except ValueError:
            return f"#{index}"
