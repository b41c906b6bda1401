"""The frozen tower of a small TextHarmony: a recogniser's inner map, which knows letters, beside colours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from mova.cut import INPUT, OUTPUT, Map, cells, folding, save, wrapped

LETTER_CHANNELS = 208
"""Of the recogniser's 1,536: random directions keep what tells letters apart (a linear reader gets all of them)."""
COLOUR_PIXELS = 4
"""Side of the squares of pixels whose mean colour is kept."""
COLOUR_SCALE = 1.5
"""Of the colours, -1 to 1, beside letters of deviation 0.8: a fresh network should not overlook a pale paper."""
SEED = 0


def write_tower(reader: Path, target: Path) -> Map:
    """Writes the network: `pixels` (N, 3, S, S) to `features` (N, C, H, W), and returns the shape of its map.

    Args:
        reader: the cut recogniser of MoVA's data, with output `features`.
        target: the file.
    """
    import onnx

    model = onnx.load(reader)
    (entry,), (map_out,) = model.graph.input, model.graph.output
    size = entry.type.tensor_type.shape.dim[2].dim_value
    channels, rows, columns = (one.dim_value for one in map_out.type.tensor_type.shape.dim[1:])
    coarse, across = size // COLOUR_PIXELS, size // COLOUR_PIXELS // rows
    folded = ("cells", "apart", "joined", "split", "turned")  # folding's own names, which are taken once more below
    nodes = [_renamed(node, {OUTPUT: "read"} | {name: f"read_{name}" for name in folded}) for node in model.graph.node]
    nodes += [
        onnx.helper.make_node("Conv", ["read", "directions"], ["letters"], kernel_shape=[1, 1]),
        onnx.helper.make_node(
            "AveragePool", [INPUT], ["means"], kernel_shape=[COLOUR_PIXELS] * 2, strides=[COLOUR_PIXELS] * 2
        ),
        onnx.helper.make_node("Mul", ["means", "scale"], ["cells"]),
        *(_renamed(node, {OUTPUT: "colours"}) for node in folding(onnx, (3, coarse, coarse), (across, across))),
        onnx.helper.make_node("Concat", ["letters", "colours"], [OUTPUT], axis=1),
    ]
    shape = (LETTER_CHANNELS + 3 * across**2, rows, columns)
    constants = {"directions": _directions(channels), "scale": np.float32([COLOUR_SCALE])}
    initial = [onnx.numpy_helper.from_array(values, name) for name, values in constants.items()]
    initial += model.graph.initializer
    graph = onnx.helper.make_graph(nodes, target.stem, [entry], [cells(onnx, OUTPUT, shape)], initial)
    save(wrapped(onnx, graph, model), target)
    return shape


def _directions(channels: int) -> Any:
    """Returns the weights of a 1 x 1 convolution to random directions."""
    drawn = np.random.default_rng(SEED).standard_normal((LETTER_CHANNELS, channels, 1, 1))
    return (drawn / np.sqrt(channels)).astype(np.float32)


def _renamed(node: Any, names: dict[str, str]) -> Any:
    """Returns the node with other names for some tensors."""
    node.input[:] = [names.get(name, name) for name in node.input]
    node.output[:] = [names.get(name, name) for name in node.output]
    return node
