import pytest

from dist_mnist.config.errors import InputError, refusing


def test_a_long_foreign_message_is_cut_between_words() -> None:
    with pytest.raises(InputError) as refused, refusing("the file cannot be read"):
        raise ValueError("a word " * 100)
    assert str(refused.value).endswith("a word [...].")
    assert len(str(refused.value)) <= len("the file cannot be read: ") + 300 + len(".")
