"""benchmarks/cuda/pack.py: what goes into the archive for a GPU machine."""

import re
import tarfile
from importlib.metadata import requires

import pytest

OF_OLD_PYTHONS = {"eval-type-backport"}


@pytest.fixture
def pack():
    from benchmarks.cuda import pack

    return pack


@pytest.fixture
def wheels(tmp_path):
    folder = tmp_path / "wheels"
    folder.mkdir()
    for name in ("tyro-1.0-py3-none-any", "pydantic_core-2.0-cp312-cp312-manylinux_2_17_x86_64.manylinux2014_x86_64"):
        (folder / f"{name}.whl").write_bytes(b"stub")
    return folder


def test_what_is_in_it(pack, wheels, tmp_path):
    archive = tmp_path / "pack.tar.gz"
    contents = dict(pack.make(archive, wheels))
    with tarfile.open(archive) as found:
        names = {member.name for member in found if member.isfile()}
        script = found.getmember("advnas-ext/benchmarks/cuda/quarter_hour.sh")
        assert script.mode & 0o100, "it can be run"
        commit = found.extractfile("advnas-ext/COMMIT").read().decode()
    assert re.fullmatch(r"[0-9a-f]{40}\n", commit)
    assert names == set(contents)
    for file in ("setup.py", "csrc/kernels/cuda/node.cu", "tests/test_gpu.py", "wheels/tyro-1.0-py3-none-any.whl"):
        assert f"advnas-ext/{file}" in names
    assert not [name for name in names if name.endswith((".so", ".o", ".pyc"))]
    lines = pack.summary(list(contents.items())).splitlines()
    assert any(line.endswith("wheels/tyro-1.0-py3-none-any.whl") for line in lines)
    assert any(line.split()[-1] == "csrc" for line in lines)


def test_it_has_a_limit(pack, wheels, tmp_path):
    with pytest.raises(SystemExit, match="at most 1000 bytes, got"):
        pack.make(tmp_path / "pack.tar.gz", wheels, limit=1000)
    assert not (tmp_path / "pack.tar.gz").exists()


@pytest.mark.parametrize(
    "tags, is_foreign",
    [
        ("cp311-cp311-manylinux_2_17_x86_64", True),
        ("cp312-cp312-linux_x86_64", False),
        ("py3-none-any", False),
        ("py2.py3-none-any", False),
        ("cp312-abi3-any", False),
    ],
)
def test_wheels_of_another_python_are_refused(pack, wheels, tmp_path, tags, is_foreign):
    assert pack.foreign(f"some-1.0-{tags}.whl") == is_foreign
    if is_foreign:
        (wheels / f"some-1.0-{tags}.whl").write_bytes(b"stub")
        with pytest.raises(SystemExit, match=r"must be for Python 3.12, got some-1.0-cp311"):
            pack.make(tmp_path / "pack.tar.gz", wheels)


def test_no_wheel_is_forgotten(pack):
    """What the packed wheels ask for is packed too; xautodl's requirements are never imported."""
    known = {*pack.WHEELS, *OF_OLD_PYTHONS}
    for name in set(pack.WHEELS) - {"xautodl"}:
        for requirement in requires(name) or []:
            if "extra ==" not in requirement:
                asked = re.match(r"[\w.-]+", requirement)[0].lower().replace("_", "-")
                assert asked in known, f"{name} asks for {requirement}"
