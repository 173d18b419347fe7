"""Build information in the compiled library."""

import pytest
import torch

from d2_deformable.utils.library import PATH, read_build, same_minor


def test_the_library_names_its_torch():
    build = read_build(PATH)
    assert build.torch == torch.__version__.partition("+")[0]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"\0d2_deformable built with torch 2.11.0\0x", ("2.11.0", ())),
        (
            b"d2_deformable built for CUDA architectures 750,900,1200\0",
            (None, ("7.5", "9.0", "12.0")),
        ),
        (b"", (None, ())),
    ],
)
def test_texts(content, expected, tmp_path):
    (tmp_path / "_C.so").write_bytes(content)
    assert read_build(tmp_path / "_C.so") == expected


def test_same_minor():
    assert same_minor("2.11.0", "2.11.1+cu130")
    assert not same_minor("2.11.0", "2.1.0")
