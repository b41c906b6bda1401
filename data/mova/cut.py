"""A network of an ONNX file cut at an inner tensor: what is left turns a square picture into one map of features."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

Map = tuple[int, int, int]
"""Channels, rows and columns."""
INPUT, OUTPUT = "pixels", "features"


@dataclass(frozen=True)
class Cut:
    """Where a network is cut, for pictures of which size, and how its cells are gathered."""

    tensor: str
    """The inner tensor (N, C, H, W)."""
    size: int
    """Side of the square input, in pixels."""
    fold: tuple[int, int] = (1, 1)
    """Rows and columns of neighbouring cells whose channels are put one after the other: fewer cells, no loss."""


def cut(source: Path, where: Cut, target: Path) -> Map:
    """Writes the first part of a network, with a free batch dimension, and returns the shape of its map.

    Its weights stay as they are. The file takes `pixels` (N, 3, size, size) and returns `features` (N, C, H, W).

    Raises:
        ValueError: The tensor is not in the network, or its map does not fold.
    """
    import onnx

    model = onnx.load(source)
    graph = model.graph
    kept, needed = before(graph, where.tensor)
    if not kept:
        raise ValueError(f"{source} computes no tensor {where.tensor}: it is another network than expected")
    entries = [one.name for one in graph.input if one.name in needed]
    initial = [one for one in graph.initializer if one.name in needed]
    renamed = {entries[0]: INPUT, where.tensor: "cells"}
    for node in kept:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.output[:] = [renamed.get(name, name) for name in node.output]
    channels, rows, columns = map_of(onnx, kept, initial, model, where)
    down, across = where.fold
    if rows % down or columns % across:
        raise ValueError(f"{where.tensor} of {source} is a map of {rows} x {columns} cells: no fold of {where.fold}")
    folded = (channels * down * across, rows // down, columns // across)
    kept += folding(onnx, (channels, rows, columns), where.fold)
    inputs, outputs = [pixels(onnx, where.size)], [cells(onnx, OUTPUT, folded)]
    save(wrapped(onnx, onnx.helper.make_graph(kept, target.stem, inputs, outputs, initial), model), target)
    return folded


def before(graph: Any, tensor: str) -> tuple[list[Any], set[str]]:
    """Returns the nodes that a tensor depends on, in order, and the names of all they read."""
    needed, kept = {tensor}, []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(node.input)
    return kept[::-1], needed


def map_of(onnx: Any, nodes: list[Any], initial: list[Any], model: Any, where: Cut) -> Map:
    """Returns the shape of the map at the cut, by inference over the graph with the declared input."""
    graph = onnx.helper.make_graph(nodes, "cut", [pixels(onnx, where.size)], [cells(onnx, "cells", None)], initial)
    inferred = onnx.shape_inference.infer_shapes(wrapped(onnx, graph, model), data_prop=True)
    channels, rows, columns = (one.dim_value for one in inferred.graph.output[0].type.tensor_type.shape.dim[1:])
    return channels, rows, columns


def folding(onnx: Any, shape: Map, fold: tuple[int, int]) -> list[Any]:
    """Returns nodes that put the channels of neighbouring cells one after the other: (C, H, W) to (C a b, H/a, W/b)."""
    channels, rows, columns = shape
    down, across = fold
    if fold == (1, 1):
        return [onnx.helper.make_node("Identity", ["cells"], [OUTPUT])]
    helper, int64 = onnx.helper, onnx.TensorProto.INT64
    apart = [0, channels, rows // down, down, columns // across, across]
    joined = [0, channels * down * across, rows // down, columns // across]
    shapes = [
        helper.make_node("Constant", [], [name], value=helper.make_tensor(name, int64, [len(value)], value))
        for name, value in (("apart", apart), ("joined", joined))
    ]
    return [
        *shapes,
        helper.make_node("Reshape", ["cells", "apart"], ["split"]),
        helper.make_node("Transpose", ["split"], ["turned"], perm=[0, 1, 3, 5, 2, 4]),
        helper.make_node("Reshape", ["turned", "joined"], [OUTPUT]),
    ]


def save(model: Any, target: Path) -> None:
    """Writes a checked file; it has its name when it is whole."""
    import onnx

    onnx.checker.check_model(model, full_check=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f"{target.name}.part")
    draft.write_bytes(model.SerializeToString(deterministic=True))
    draft.rename(target)


def pixels(onnx: Any, size: int) -> Any:
    """Returns the declaration of the input."""
    return onnx.helper.make_tensor_value_info(INPUT, onnx.TensorProto.FLOAT, ["N", 3, size, size])


def cells(onnx: Any, name: str, shape: Map | None) -> Any:
    """Returns the declaration of an output map; its shape is left open where it is not known yet."""
    return onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", *shape] if shape else None)


def wrapped(onnx: Any, graph: Any, model: Any) -> Any:
    """Returns a model of a graph in the dialect of the one it comes from, without operators of Paddle's own."""
    dialect = [one for one in model.opset_import if one.domain == ""]
    return onnx.helper.make_model(graph, opset_imports=dialect, ir_version=model.ir_version, producer_name="mmmoe")
