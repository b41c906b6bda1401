"""From a draw to a sample: read the record, decode or look up its media, apply the template."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import Tensor

from mmmoe import paths
from mmmoe.config.ids import CANVAS_VIEW, IGNORE_ID, LETTERS_VIEW, MEDIA_IDS
from mmmoe.data.features import FeatureStore
from mmmoe.data.guide import Guide, Guided
from mmmoe.data.index import Entry
from mmmoe.data.media import KINDS, compare_marks, kind_of
from mmmoe.data.quarantine import BadSample, Quarantine
from mmmoe.data.record import Turn
from mmmoe.data.sample import Sample
from mmmoe.data.shards import ShardSet
from mmmoe.data.spec import MixtureSpec
from mmmoe.data.template import Encoded, Template, repeat_placeholders
from mmmoe.data.transform import Transform, stack_items

TaskRule = Callable[[Sequence[Turn]], int]
"""From a dialogue to the number of its task (`config/ids.TASKS`)."""


@dataclass(frozen=True)
class Source:
    """A named shard set of a mixture."""

    name: str
    domain: str
    """Tag of samples whose shard gives none."""
    shards: ShardSet
    features: Mapping[str, FeatureStore] = field(default_factory=dict)
    """Where the features of a view lie; other views are decoded, and their tower runs in the model."""

    def count(self, kind: str) -> int:
        """Returns how many items of a kind it has."""
        return sum(shard.header.items.get(kind, 0) for shard in self.shards.shards)


def open_sources(spec: MixtureSpec, beside: Path | None = None) -> list[Source]:
    """Returns the declared sources, opened.

    Raises:
        ValueError: Shards are missing or damaged, or two sources have one name.
    """
    names = [source.name for source in spec.sources]
    if len(set(names)) != len(names):
        raise ValueError(f"source names of a mixture must differ, got {names}")
    return [Source(s.name, s.domain, ShardSet(paths.resolve(s.shards, beside))) for s in spec.sources]


def with_features(sources: Sequence[Source], folder: str | Path, keys: Mapping[str, str]) -> list[Source]:
    """Returns the sources with media of each view taken from the feature cache of the tower called `keys[view]`."""
    return [
        replace(
            source,
            features={view: FeatureStore(folder, key, source.shards, kind_of(view)) for view, key in keys.items()},
        )
        for source in sources
    ]


class Dataset:
    """Samples of several sources by (source, index); no state but the list of bad ones."""

    def __init__(
        self,
        sources: Sequence[Source],
        template: Template,
        transforms: Mapping[str, Transform],
        quarantine: Quarantine,
        *,
        max_positions: int | None = None,
        positions: Mapping[str, int] | None = None,
        guide: Guide | None = None,
        task: TaskRule | None = None,
    ) -> None:
        """Puts the parts together.

        Args:
            sources: Where records lie.
            template: Makes ids and labels of them.
            transforms: By view, what makes a tower's input of media.
            quarantine: Takes the bad ones.
            max_positions: Where the model cuts a sequence; labels beyond are no targets, so that they are not counted.
            positions: Positions that the model gives one placeholder of each kind, or of a view that counts as it.
            guide: Chooses the views of each sample, of a family that has a choice; all of them otherwise.
            task: Says what task a dialogue is, to families that treat tasks differently.

        Raises:
            ValueError: A source has media of a kind for which there is neither a transform nor a feature store.
        """
        for source in sources:
            for name, kind in KINDS.items():
                if name not in transforms and name not in source.features and source.count(name):
                    known = ", ".join(KINDS[other].plural for other in transforms if other in KINDS) or "text alone"
                    raise ValueError(
                        f"source {source.name} has {source.count(name)} {kind.plural}, but the model takes {known}; "
                        "leave the source out or choose another model"
                    )
        self.sources = list(sources)
        self.template = template
        self._transforms = transforms
        self._quarantine = quarantine
        self._max_positions = max_positions
        self._positions = dict(positions or {})
        self._guide = guide
        self._task = task

    def close(self) -> None:
        """Lets go of the features."""
        for source in self.sources:
            for store in source.features.values():
                store.close()

    @property
    def sizes(self) -> list[int]:
        """Samples of each source."""
        return [len(source.shards) for source in self.sources]

    def outline(self, source: int, index: int) -> tuple[tuple[str, ...], int]:
        """Returns the modalities of a sample and its estimated text tokens, from the index alone."""
        try:
            entry = self.sources[source].shards.entry(index)
        except ValueError:
            return (), 0  # a damaged line: `get` sets the sample aside
        return entry.modalities, entry.tokens

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
        decoded = {kind_of(view) for view in self._transforms.keys() - origin.features.keys()}
        record = origin.shards.record(index, kinds=decoded)
        compare_marks((turn.text for turn in record.turns), {kind: len(entry.items(kind)) for kind in entry.kinds})
        views = frozenset(self._transforms) | origin.features.keys()
        guided = self._guide(record, source, index) if self._guide is not None else Guided(record.turns, views)
        encoded = self.template.encode(guided.turns)
        media: dict[str, Tensor] = {}
        features: dict[str, Tensor] = {}
        chunks: dict[int, list[int]] = {}

        def look(view: str, numbers: Sequence[int]) -> None:
            """Puts some items of a view's kind where they belong."""
            if not numbers:
                return
            kind = kind_of(view)
            if view in origin.features:
                made = self._features(origin.features[view], shard, entry, numbers)
            else:
                made = [self._transforms[view](record.media[kind][number]) for number in numbers]
            (features if view in origin.features else media)[view] = stack_items(kind, made)
            if KINDS[kind].is_chunked:
                chunks[MEDIA_IDS[kind]] = [len(item) for item in made]

        # The cut at max_length, or the template's first-turn rule, may have taken placeholders away.
        left = {kind: encoded.input_ids.count(MEDIA_IDS[kind]) for kind in entry.kinds}
        seen = views & guided.views
        for view in sorted(seen - {CANVAS_VIEW}):
            look(view, range(left.get(kind_of(view), 0)))
        for view, row in guided.beside.items():
            if count := left.get(kind_of(view)):
                media[view] = row.expand(count, *row.shape[1:])
        encoded = self._within_reach(repeat_placeholders(encoded, chunks), guided.counts_as)
        if CANVAS_VIEW in seen and encoded.drawn:
            look(CANVAS_VIEW, encoded.drawn)
            if self.template.letters is not None:
                media[LETTERS_VIEW] = self.template.letters.before(encoded.input_ids, encoded.drawn)
        return Sample(
            input_ids=encoded.input_ids,
            labels=encoded.labels,
            media=media,
            features=features,
            source=source,
            key=record.key,
            domain=record.domain or origin.domain,
            task=-1 if self._task is None else self._task(guided.turns),
        )

    def _within_reach(self, encoded: Encoded, counts_as: Mapping[str, str]) -> Encoded:
        """Returns the dialogue without the labels that the model will cut off."""
        if self._max_positions is None:
            return encoded
        sizes = {MEDIA_IDS[kind]: self._positions.get(counts_as.get(kind, kind), 1) for kind in KINDS}
        place, labels = 0, []
        for token, label in zip(encoded.input_ids, encoded.labels, strict=True):
            labels.append(label if place < self._max_positions else IGNORE_ID)
            place += sizes.get(token, 1)
        return Encoded(encoded.input_ids, labels)

    def _features(self, store: FeatureStore, shard: int, entry: Entry, numbers: Sequence[int]) -> list[Tensor]:
        return [store.get(shard, entry.first[store.kind] + number) for number in numbers]

    def _key(self, source: Source, index: int) -> str:
        try:
            return source.shards.entry(index).key
        except ValueError:
            return f"#{index}"
