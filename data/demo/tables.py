"""Real tables as series of numbers: what a chart can be drawn from."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import pandas
from demo.splits import Split, table_split
from vega_datasets import local_data

TABLES = (
    "airports",
    "barley",
    "burtin",
    "cars",
    "crimea",
    "driving",
    "iowa-electricity",
    "iris",
    "ohlc",
    "seattle-temps",
    "seattle-weather",
    "sf-temps",
    "stocks",
    "us-employment",
    "wheat",
)
"""The tables of vega-datasets that ship in its wheel and hold something to plot."""
Series = tuple[float, ...]
TRENDS = ("rising", "falling", "flat")


@dataclass(frozen=True)
class Table:
    """What one table offers: values by category (any few may stand side by side) and values in time."""

    name: str
    categories: tuple[Series, ...]
    times: tuple[Series, ...]


def by_group(frame: pandas.DataFrame, key: str, values: list[str]) -> list[Series]:
    """Returns the mean of each column for every value of the key."""
    means = frame.groupby(key)[values].mean().dropna()
    return [tuple(map(float, means[column])) for column in values]


def by_time(frame: pandas.DataFrame, values: list[str]) -> list[Series]:
    """Returns columns in the table's own order."""
    return [tuple(map(float, frame[column].dropna())) for column in values]


def read_categories(name: str, frame: pandas.DataFrame) -> list[Series]:
    """Returns the values by category of a table."""
    if name == "airports":
        return [tuple(map(float, frame["state"].value_counts().head(30)))]
    if name == "barley":
        return by_group(frame, "variety", ["yield"]) + by_group(frame, "site", ["yield"])
    if name == "burtin":
        return by_time(frame, ["Penicillin", "Streptomycin", "Neomycin"])
    if name == "cars":
        columns = ["Miles_per_Gallon", "Horsepower", "Weight_in_lbs", "Displacement", "Acceleration"]
        return [*by_group(frame, "Year", columns), tuple(map(float, frame["Name"].str.split().str[0].value_counts()))]
    if name == "iowa-electricity":
        return [tuple(map(float, rows["net_generation"])) for _, rows in frame.groupby("year")]
    if name == "iris":
        return by_time(frame, ["sepalLength", "petalLength", "petalWidth"])
    if name == "seattle-weather":
        return [tuple(map(float, frame["weather"].value_counts())), *by_time(frame, ["temp_max", "wind"])]
    return []


def read_times(name: str, frame: pandas.DataFrame) -> list[Series]:
    """Returns the values in time of a table."""
    columns = {
        "crimea": ["wounds", "other", "disease"],
        "driving": ["miles", "gas"],
        "ohlc": ["open", "high", "low", "close"],
        "seattle-temps": ["temp"],
        "seattle-weather": ["temp_max", "temp_min"],
        "sf-temps": ["temp"],
        "us-employment": ["nonfarm", "construction", "manufacturing", "retail_trade", "information", "government"],
        "wheat": ["wheat", "wages"],
    }
    if name == "stocks":
        return [series for _, rows in frame.groupby("symbol") for series in by_time(rows, ["price"])]
    if name == "iowa-electricity":
        return [series for _, rows in frame.groupby("source") for series in by_time(rows, ["net_generation"])]
    return by_time(frame, columns.get(name, []))


def load_tables(split: Split) -> list[Table]:
    """Returns the tables of one split."""
    tables = []
    for name in TABLES:
        if table_split(name) == split:
            frame = getattr(local_data, name.replace("-", "_"))()
            times = read_times(name, frame)
            # Few values of a time series, far apart, are as good a bar chart as categories are.
            tables.append(Table(name, tuple(read_categories(name, frame)) + tuple(times), tuple(times)))
    return tables


def pick(tables: list[Table], kind: str, draw: random.Random) -> tuple[str, Series]:
    """Returns a table's name and one of its series."""
    table = draw.choice([table for table in tables if getattr(table, kind)])
    return table.name, draw.choice(getattr(table, kind))


def search(attempt: Callable[[random.Random], Series | None], draw: random.Random) -> Series:
    """Returns the first values that an attempt finds acceptable."""
    for _ in range(5000):
        values = attempt(draw)
        if values is not None:
            return values
    raise ValueError("no table of this split has such values: check the split of the tables")


def few_values(tables: list[Table], count: int, draw: random.Random) -> Series:
    """Returns `count` positive values of one series, the largest at least a fifth above the next."""

    def attempt(draw: random.Random) -> Series | None:
        _, series = pick(tables, "categories", draw)
        usable = [value for value in series if value > 0]
        if len(usable) < count:
            return None
        values = draw.sample(usable, count)
        ordered = sorted(values)
        distinct = ordered[-1] >= 1.2 * ordered[-2] and ordered[0] >= 0.04 * ordered[-1]
        return tuple(values) if distinct else None

    return search(attempt, draw)


def window(tables: list[Table], trend: str, draw: random.Random) -> Series:
    """Returns 8 to 24 successive values of a series that rise, fall or stay level."""

    def attempt(draw: random.Random) -> Series | None:
        _, series = pick(tables, "times", draw)
        length, stride = draw.randint(8, 24), draw.choice((1, 1, 2, 4))
        if len(series) < length * stride or min(series) < 0:
            return None
        start = draw.randint(0, len(series) - length * stride)
        values = series[start : start + length * stride : stride]
        return values if trend_of(values) == trend else None

    return search(attempt, draw)


def trend_of(values: Series) -> str | None:
    """Returns rising, falling or flat by the fitted line, or None when it is none of them clearly.

    The change is measured against an axis that starts at zero, as the chart draws it.
    """
    top = max(values)
    if top <= 0:
        return None
    middle = (len(values) - 1) / 2
    mean = sum(values) / len(values)
    spread = sum((place - middle) ** 2 for place in range(len(values)))
    slope = sum((place - middle) * (value - mean) for place, value in enumerate(values)) / spread
    rest = [value - mean - slope * (place - middle) for place, value in enumerate(values)]
    change = slope * (len(values) - 1) / top
    noise = (sum(value * value for value in rest) / len(values)) ** 0.5 / top
    if abs(change) < 0.06 and noise < 0.06:
        return "flat"
    if abs(change) < 0.3 or noise > 0.15:
        return None
    return "rising" if change > 0 else "falling"
