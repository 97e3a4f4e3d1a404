import pytest

from dist_mnist.config.errors import InputError, one_line, refusing


def test_a_long_foreign_message_is_cut_between_words() -> None:
    with pytest.raises(InputError) as refused, refusing("the file cannot be read"):
        raise ValueError("a word " * 100)
    assert str(refused.value).endswith("a word [...].")
    assert len(str(refused.value)) <= len("the file cannot be read: ") + 300 + len(".")


def test_what_a_terminal_would_obey_is_left_out() -> None:
    text = "\x1b[31mred\x1b[0m \x1b]0;title\x07 a\tb\nc\x00\x9b2J é"
    assert one_line(ValueError(text)) == "red ]0;title a b c2J é"
