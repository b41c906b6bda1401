"""EfficientNet-Lite as an ONNX file: all stages, batch norms folded in, without the last widening and the classifier.

The last widening (to 1,280 channels) is a 1 x 1 convolution of what comes out here, so nothing is lost with it, and
an adapter as wide as its base tower is a quarter as wide.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mova.cut import INPUT, OUTPUT, Map, cells, pixels, save
from torch import nn

OPSET = 17


class Nodes:
    """Nodes of a graph in the making, one after the other, with their weights."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.weights: list[Any] = []

    def add(self, kind: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        """Appends a node and returns the name of its output."""
        import onnx

        name = output or f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(onnx.helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def weight(self, values: Any) -> str:
        """Appends a constant and returns its name."""
        import onnx

        name = f"weight_{len(self.weights)}"
        self.weights.append(onnx.numpy_helper.from_array(values.detach().numpy(), name))
        return name

    def convolution(self, x: str, convolution: Any, norm: nn.BatchNorm2d, *, is_active: bool) -> str:
        """Appends a convolution with its norm folded in and, if active, ReLU6."""
        import torch
        from torch.nn.utils.fusion import fuse_conv_bn_eval

        fused = fuse_conv_bn_eval(convolution.eval(), norm.eval())
        size, stride = int(fused.kernel_size[0]), int(fused.stride[0])
        # TensorFlow's rule: an odd row and column of zeros go to the bottom and the right.
        less, more = (size - stride) // 2, (size - stride + 1) // 2
        made = self.add(
            "Conv", x, self.weight(fused.weight), self.weight(fused.bias), kernel_shape=[size, size],
            strides=[stride, stride], pads=[less, less, more, more], group=fused.groups,
        )  # fmt: skip
        if not is_active:
            return made
        return self.add("Clip", made, self.weight(torch.tensor(0.0)), self.weight(torch.tensor(6.0)))

    def block(self, x: str, block: Any) -> str:
        """Appends an inverted bottleneck: widen, filter each channel, narrow, add the input where the shape is kept."""
        y = x
        if hasattr(block, "_expand_conv"):
            y = self.convolution(y, block._expand_conv, block._bn0, is_active=True)
        y = self.convolution(y, block._depthwise_conv, block._bn1, is_active=True)
        y = self.convolution(y, block._project_conv, block._bn2, is_active=False)
        kept = block._project_conv.out_channels == block._block_args.input_filters
        strides = block._depthwise_conv.stride[0]
        return self.add("Add", y, x) if block.id_skip and strides == 1 and kept else y


def write_efficientnet(checkpoint: Path, name: str, image_size: int, target: Path) -> Map:
    """Writes the network for square pictures of a size and returns the shape of its map.

    Args:
        checkpoint: the weights, a file of tensors.
        name: which network: lite0 to lite4.
        image_size: side of the pictures, a multiple of 32; the map has a cell for every 32 pixels.
        target: the file.
    """
    import onnx
    import torch
    from efficientnet_lite_pytorch import EfficientNet

    net = EfficientNet.from_name(f"efficientnet-{name}")
    net.load_state_dict(torch.load(checkpoint, map_location="cpu", weights_only=True))
    made = Nodes()
    x = made.convolution(INPUT, net._conv_stem, net._bn0, is_active=True)
    for block in net._blocks:
        x = made.block(x, block)
    made.add("Identity", x, output=OUTPUT)
    shape = (int(net._blocks[-1]._project_conv.out_channels), image_size // 32, image_size // 32)
    graph = onnx.helper.make_graph(
        made.nodes, name, [pixels(onnx, image_size)], [cells(onnx, OUTPUT, shape)], made.weights
    )
    save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", OPSET)], ir_version=8), target)
    return shape
