"""Weights of a Caffe network, read without Caffe."""

import math
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from vlbert_jax.weights.resnet_names import caffe_to_resnet


def _net_parameter_class():
    """Return a protobuf class with the fields of Caffe's NetParameter that hold weights."""
    file = descriptor_pb2.FileDescriptorProto(name="caffe_weights.proto", package="caffe_weights", syntax="proto2")
    field, one, many = descriptor_pb2.FieldDescriptorProto, 1, 3

    def message(name, *fields):
        new = file.message_type.add(name=name)
        for number, label, kind, field_name, packed in fields:
            added = new.field.add(name=field_name, number=number, label=label)
            added.type = field.TYPE_MESSAGE if isinstance(kind, str) else kind
            if isinstance(kind, str):
                added.type_name = f".caffe_weights.{kind}"
            added.options.packed = packed

    message("Shape", (1, many, field.TYPE_INT64, "dim", True))
    old_shape = ("num", "channels", "height", "width")
    sizes = [(number, one, field.TYPE_INT32, name, False) for number, name in enumerate(old_shape, 1)]
    message("Blob", *sizes, (5, many, field.TYPE_FLOAT, "data", True), (7, one, "Shape", "shape", False))
    message("Layer", (1, one, field.TYPE_STRING, "name", False), (7, many, "Blob", "blobs", False))
    message("OldLayer", (4, one, field.TYPE_STRING, "name", False), (6, many, "Blob", "blobs", False))
    layers = [(2, many, "OldLayer", "layers", False), (100, many, "Layer", "layer", False)]
    message("Net", (1, one, field.TYPE_STRING, "name", False), *layers)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("caffe_weights.Net"))


def read_caffe(path: Path) -> dict[str, np.ndarray]:
    """Read the tensors of a Caffe network.

    Layers of the detector's ResNet get torchvision's names. Blobs of other layers are named
    `layer[blob]`. Raises ValueError if the file is not a Caffe network or is damaged.
    """
    net: Any = _net_parameter_class()()  # the fields of a message exist at run time only
    try:
        net.ParseFromString(path.read_bytes())
    except DecodeError:
        net.Clear()
    if not (net.layers or net.layer):
        raise ValueError(
            f"{path} ({path.stat().st_size:,} bytes) is neither a PyTorch, safetensors nor Caffe file; check that "
            "it is complete"
        )
    tensors = {}
    for layer in (*net.layers, *net.layer):  # a file has one of them; Caffe used `layers` before 2015
        if not isinstance(layer.name, str):  # protobuf returns bytes that are not UTF-8 as they are
            raise ValueError(f"{path} is damaged: {layer.name[:60]!r}, the name of a layer, is not UTF-8")
        blobs = []
        for blob in layer.blobs:
            shape = tuple(blob.shape.dim) or (blob.num, blob.channels, blob.height, blob.width)
            data = np.fromiter(blob.data, np.float32, len(blob.data))
            if min(shape) < 0 or data.size != math.prod(shape):
                raise ValueError(f"{path}: layer {layer.name} has {data.size} values for the shape {shape}")
            blobs.append(data.reshape(shape))
        try:
            resnet = caffe_to_resnet(layer.name, blobs)
        except ValueError as error:
            raise ValueError(f"{path}: layer {layer.name} has {len(blobs)} arrays: {error}") from error
        tensors |= resnet or {f"{layer.name}[{i}]": blob for i, blob in enumerate(blobs)}
    return tensors
