import torch

from dist_mnist.data.seeding import keyed_seed, seed_device


def test_keys_give_seeds_of_their_own() -> None:
    keys = [(seed, "step", step, rank) for seed in (0, 1) for step in range(20) for rank in (0, 1)]
    assert len({keyed_seed(*key) for key in keys}) == len(keys)
    assert keyed_seed(0, "step", 5, 1) == keyed_seed(0, "step", 5, 1)
    assert all(0 <= keyed_seed(*key) < 2**63 for key in keys)


def test_a_seeded_device_repeats_itself() -> None:
    values = []
    for _ in range(2):
        seed_device(torch.device("cpu"), 7)
        values.append(torch.rand(3))
    assert torch.equal(*values)
