"""Sizes of the network for tests to which the encoder does not matter: a ResNet of four blocks compiles soonest."""

SIZES = {
    "encoder": "resnet18", "blocks": [1, 1, 1, 1], "width": 4, "front_end": "sdpn", "embedding_size": 12,
    "hidden_size": 20, "projection_size": 10, "dtype": "float32", "remat": False,
}  # fmt: skip
