"""Keys that no schema has, and the nearest ones that it has."""

from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError

from dist_mnist.config.errors import InputError

NEAR = 0.75  # of 1 and a third: how alike two keys must be
NEARLY_THE_SAME = 0.1


def require_known_keys(composed: DictConfig) -> None:
    """Raise an InputError if Hydra's `+` has put a key where a dataclass has none."""
    keys = dict(_walk(composed))
    unknown = next((key for key, is_known in keys.items() if not is_known), None)
    if unknown is not None:
        raise InputError(_sentence(unknown, [key for key, is_known in keys.items() if is_known]))


def unknown_key_sentence(error: BaseException | None) -> str | None:
    """Return what to say about OmegaConf's error for an unknown key; None for another error."""
    if not isinstance(error, (ConfigAttributeError, ConfigKeyError)) or not error.full_key:
        return None
    node = error.parent_node
    keys = [] if node is None else [*dict(_walk(node._get_root()))]
    is_open = node is not None and "_target_" in node
    free = f" To add one, write +{error.full_key}=..." if is_open else ""
    return _sentence(error.full_key, keys) + free


def _walk(node: Any, prefix: str = "") -> Iterator[tuple[str, bool]]:
    """Yield all keys of a config, and whether their dataclass has them; a dict has any key."""
    fields = getattr(OmegaConf.get_type(node), "__dataclass_fields__", None)
    for key in node:
        is_known = fields is None or key in fields
        yield f"{prefix}{key}", is_known
        child = node._get_node(key)
        if OmegaConf.is_dict(child) and not child._is_none() and key != "hydra":
            yield from _walk(child, f"{prefix}{key}.")


def _sentence(key: str, keys: Sequence[str]) -> str:
    near = _nearest(key, keys)
    return f"{key} is not a key" + (f": did you mean {' or '.join(near)}?" if near else ".")


def _nearest(key: str, keys: Sequence[str]) -> list[str]:
    """Return the key that is most like another one, or two; none if none is like it."""

    def likeness(other: str) -> float:
        # The parent counts little: it may be missing or wrong, as in lr=0.1 or model.lr=0.1.
        leaf, other_leaf = (name.rpartition(".")[2] for name in (key, other))
        whole = SequenceMatcher(None, key, other).ratio()
        return SequenceMatcher(None, leaf, other_leaf).ratio() + whole / 3

    order = sorted(keys, key=likeness, reverse=True)
    return [k for k in order[:2] if likeness(k) > max(NEAR, likeness(order[0]) - NEARLY_THE_SAME)]
