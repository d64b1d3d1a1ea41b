"""Reads golden arrays: the released PyTorch names and layouts -> this project's parameter trees. For tests alone."""

import re

import numpy as np

ENCODER = [
    (r"backbone\.blocks\.0\.", "encoder.tdnn."),
    (r"backbone\.blocks\.(\d+)\.", r"encoder.block_\1."),
    (r"backbone\.mfa\.", "encoder.mfa."),
    (r"backbone\.asp\.tdnn\.conv\.conv\.", "encoder.pooling.tdnn_conv."),
    (r"backbone\.asp\.tdnn\.norm\.norm\.", "encoder.pooling.tdnn_norm."),
    (r"backbone\.asp\.conv\.conv\.", "encoder.pooling.conv."),
    (r"backbone\.asp_bn\.norm\.", "encoder.pooling_norm."),
    (r"backbone\.fc\.conv\.", "encoder.embedding."),
    (r"res2net_block\.blocks\.(\d+)\.", r"res2net.block_\1."),
    (r"se_block\.conv1\.conv\.", "se.squeeze."),
    (r"se_block\.conv2\.conv\.", "se.excite."),
    (r"conv\.conv\.", "conv."),
    (r"norm\.norm\.", "norm."),
    (r"head\.mlp\.0\.", "head.dense_0."),
    (r"head\.mlp\.1\.", "head.norm_0."),
    (r"head\.mlp\.3\.", "head.dense_1."),
    (r"head\.mlp\.4\.", "head.norm_1."),
    (r"head\.mlp\.6\.", "head.dense_2."),
]


def network_variables(arrays: dict, prefix: str) -> dict:
    """{'params': ..., 'batch_stats': ...} of Network from the arrays whose names start with `prefix`."""
    variables = {"params": {}, "batch_stats": {}}
    for name, value in arrays.items():
        if not name.startswith(prefix) or name.endswith("num_batches_tracked"):
            continue
        path = name.removeprefix(prefix).removeprefix("module.")
        for pattern, replacement in ENCODER:
            path = re.sub(pattern, replacement, path)
        *parents, leaf = path.split(".")
        if leaf.startswith("running_"):
            collection, leaf = variables["batch_stats"], leaf.removeprefix("running_")
        else:
            collection = variables["params"]
            is_norm = "norm" in parents[-1]
            leaf = {"weight": "scale" if is_norm else "kernel"}.get(leaf, leaf)
        for parent in parents:
            collection = collection.setdefault(parent, {})
        collection[leaf] = np.asarray(value).T if leaf == "kernel" else np.asarray(value)
    return variables


def network_sizes(variables: dict) -> dict:
    """The arguments of Network that fit these arrays."""
    encoder, head = variables["params"]["encoder"], variables["params"]["head"]
    blocks = sorted((k for k in encoder if k.startswith("block_")), key=lambda k: int(k.split("_")[1]))
    channels = [encoder["tdnn"]["conv"]["bias"].size]
    channels += [encoder[block]["tdnn2"]["conv"]["bias"].size for block in blocks]
    channels += [encoder["mfa"]["conv"]["bias"].size]
    return dict(
        channels=tuple(channels),
        se_bottleneck=encoder["block_1"]["se"]["squeeze"]["bias"].size,
        attention=encoder["pooling"]["tdnn_conv"]["bias"].size,
        embedding_size=encoder["embedding"]["bias"].size,
        hidden_size=head["dense_0"]["bias"].size,
        projection_size=head["dense_2"]["bias"].size,
    )
