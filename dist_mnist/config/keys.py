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
    """Check that Hydra's `+` has put no key where a dataclass has none.

    Raises:
        InputError: It has.
    """
    unknown = [*_unknown_keys(composed)]
    if unknown:
        known = [key for key in _all_keys(composed) if key not in unknown]
        raise InputError(_sentence(unknown[0], known))


def unknown_key_sentence(error: BaseException | None) -> str | None:
    """Return what to say about OmegaConf's error for an unknown key; None for another error."""
    if not isinstance(error, (ConfigAttributeError, ConfigKeyError)) or not error.full_key:
        return None
    node = error.parent_node
    keys = [] if node is None else _all_keys(node._get_root())
    is_free = node is not None and not _fields(node)
    free = f" To add one, write +{error.full_key}=..." if is_free else ""
    return _sentence(error.full_key, keys) + free


def _unknown_keys(node: Any, prefix: str = "") -> Iterator[str]:
    """Yield the keys that the dataclasses of a config lack."""
    fields = _fields(node)
    for key in node:
        if fields and key not in fields:
            yield f"{prefix}{key}"
        elif OmegaConf.is_dict(child := node._get_node(key)):
            yield from _unknown_keys(child, f"{prefix}{key}.")


def _fields(node: Any) -> Sequence[str]:
    """Return the keys of a node's dataclass; none for a dict, which takes any key."""
    return [*getattr(OmegaConf.get_type(node), "__dataclass_fields__", ())]


def _all_keys(root: Any, prefix: str = "") -> list[str]:
    keys = []
    for key in root:
        child = root._get_node(key)
        keys.append(f"{prefix}{key}")
        if OmegaConf.is_dict(child) and not child._is_none() and key != "hydra":
            keys += _all_keys(child, f"{prefix}{key}.")
    return keys


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
