"""The encoders in plain PyTorch that benchmarks compare with are those of the toolkits, and hold our weights."""

import numpy as np
import pytest

from sdpn_jax.weights.load import load_network

torch = pytest.importorskip("torch", reason="PyTorch is not installed (the extra `bench`)")
FILES = [
    "resnet34_wespeaker/avg_model.pt", "resnet_bottleneck_wespeaker/avg_model.pt", "ecapa_wespeaker/avg_model.pt",
    "campplus_3dspeaker/campplus_cn_common.bin", "eres2netv2_3dspeaker/pretrained_eres2netv2.ckpt",
    "eres2netv2_w24s4ep4_3dspeaker/pretrained_eres2netv2w24s4ep4.ckpt", "ecapa_3dspeaker/ecapa_tdnn.bin",
]  # fmt: skip


@pytest.mark.parametrize("file", FILES)
def test_the_toolkits_files_and_ours_give_the_toolkits_embeddings(golden, file):
    import torch_encoders

    path = golden / "encoders" / file
    network, variables, _ = load_network(path)
    encoder = torch_encoders.encoder_of(network)
    state = torch.load(path, weights_only=True)
    state = {name: array for name, array in state.items() if not name.startswith("projection.")}
    encoder.load_state_dict(torch_encoders.with_counts(encoder, state))
    expected = np.load(path.parent / "expected.npz")
    for i in range(2):
        features = torch.from_numpy(expected[f"features_{i}"]).double()[None]
        with torch.inference_mode():
            found = encoder.double()(features)[0].numpy()
        np.testing.assert_allclose(found, expected[f"embedding_{i}"], rtol=1e-8, atol=1e-8)

    written = torch_encoders.encoder_with(network, variables).state_dict()
    for name, array in torch_encoders.with_counts(encoder, state).items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(written[name], array), name
