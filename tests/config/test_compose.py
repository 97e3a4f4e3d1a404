"""From overrides to a config: misspelled keys, and `compose_config` beside other users of Hydra."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.version import getbase

from dist_mnist.config.compose import compose_config, hydra_sentence
from dist_mnist.config.errors import InputError
from dist_mnist.config.saved_config import config_from_plain
from dist_mnist.config.schema import plain_config


@pytest.mark.parametrize("sign", ["", "+", "++"])
@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("trainer.epoch=1", "trainer.epochs?"),
        ("data.validaton_size=10", "data.validation_size?"),
        ("seeed=3", "seed?"),
        ("epochs=3", "trainer.epochs?"),
        ("lr=0.1", "optimizer.lr?"),
        ("tracking.proyect=x", "tracking.project?"),
        ("transfer.freezes=[a]", "transfer.freeze?"),
        ("batch_size=3", "trainer.micro_batch_size or trainer.global_batch_size?"),
    ],
)
def test_a_misspelled_key_is_refused_with_the_nearest_one(
    sign: str, override: str, meant: str
) -> None:
    with pytest.raises(InputError) as raised:
        compose_config(sign + override)
    key = override.partition("=")[0]
    assert str(raised.value) == f"{key} is not a key: did you mean {meant}"


def test_a_key_unlike_any_other_is_refused_without_a_guess() -> None:
    with pytest.raises(InputError, match=r"^foo is not a key\.$"):
        compose_config("+foo=1")


@pytest.mark.parametrize("override", ["model=null", "+optimizer=null", "data="])
def test_a_group_without_a_choice_is_refused(override: str) -> None:
    with pytest.raises(InputError, match="is not a choice: name a file"):
        compose_config(override)


def test_open_sets_take_new_keys_with_a_plus() -> None:
    assert compose_config("+optimizer.eps=0.1").optimizer["eps"] == 0.1
    with pytest.raises(InputError, match=r"write \+optimizer\.rl="):
        compose_config("optimizer.rl=1")


def test_a_misspelled_change_to_a_checkpoint_is_refused_with_the_nearest_key() -> None:
    plain = plain_config(compose_config())
    with pytest.raises(Exception, match="fitt") as raised:
        config_from_plain(plain, {"data": {"fitt": "pad"}})
    assert hydra_sentence(raised.value) == "data.fitt is not a key: did you mean data.fit?"


def test_composing_leaves_other_users_of_hydra_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ConfigStore.instance()
    monkeypatch.setattr(store, "repo", dict(store.repo))
    store.store("train_schema", {"theirs": 1})
    (tmp_path / "app.yaml").write_text("answer: 42\n")
    with initialize_config_dir(version_base="1.2", config_dir=str(tmp_path)):
        before = getbase()
        with ThreadPoolExecutor(4) as pool:
            configs = [*pool.map(lambda seed: compose_config(f"seed={seed}"), range(8))]
        assert [config.seed for config in configs] == [*range(8)]
        assert getbase() == before
        assert compose("app") == {"answer": 42}
        assert compose("train_schema") == {"theirs": 1}
