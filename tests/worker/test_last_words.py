"""The end of what a process wrote."""

import os

from qmix_lightning.worker.last_words import LastWords


def test_the_last_lines_are_kept_in_one_and_everything_is_passed_on(capfd):
    words = LastWords()
    descriptor = os.dup(words.descriptor)
    words.release()
    words.release()
    text = "".join(f"line {i}\n" for i in range(2000)) + "error: \x1b[31mlibfoo.so\x1b[0m\n\n  cannot open\n"
    os.write(descriptor, text.encode())
    os.close(descriptor)
    assert words.shown() == "; the last that it wrote: line 1999 / error: [31mlibfoo.so [0m / cannot open"
    assert capfd.readouterr().err == text


def test_who_said_nothing_has_no_last_words():
    words = LastWords()
    words.release()
    assert words.shown() == ""


def test_a_long_line_is_cut():
    words = LastWords()
    os.write(words.descriptor, b"x" * 10_000)
    words.release()
    assert len(words.shown()) < 350
