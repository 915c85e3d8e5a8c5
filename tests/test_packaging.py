"""The wheel, the import names, the commands' help."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from importlib.metadata import packages_distributions

import pytest

from product import BIN, ROOT, environment

PACKAGES = {"data_pipeline", "envs", "rl", "serving"}
FOLDERS = {"benchmarks", "k8s", "scripts", "tests", "tune_configs"}


def test_wheel_holds_just_the_four_packages(tmp_path):
    built = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", tmp_path, ROOT],
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == PACKAGES
    modules = {
        str(p.relative_to(ROOT)) for top in PACKAGES for kind in ("py", "yaml") for p in (ROOT / top).rglob(f"*.{kind}")
    }
    assert modules <= set(names)


@pytest.mark.parametrize("name", sorted(PACKAGES | FOLDERS))
def test_import_name_is_claimed_by_no_other_distribution(name):
    assert set(packages_distributions().get(name, [])) == ({"swing-rl"} if name in PACKAGES else set())


@pytest.mark.parametrize("package", ["data_pipeline", "envs", "serving.executor", "serving.contract"])
def test_import_loads_neither_torch_nor_ray(package):
    code = (
        "import importlib, pkgutil, sys; top = importlib.import_module(sys.argv[1]);"
        "inside = pkgutil.iter_modules(getattr(top, '__path__', []));"
        "[importlib.import_module(f'{top.__name__}.{m.name}') for m in inside];"
        "print(sorted({'torch', 'ray'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, package], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("program", ["swing-data", "swing-rl", "swing-live"])
def test_help_teaches_each_command_with_an_example(program):
    def told(*arguments):
        return subprocess.run(
            [BIN / program, *arguments, "--help"], capture_output=True, text=True, check=True, env=environment()
        ).stdout

    top = told()
    commands = [
        line.split()[1] for line in top.split("Commands", 1)[1].splitlines() if line.startswith("│ ") and line[2] != " "
    ]
    assert len(commands) >= 4
    for name in commands:
        assert "--" in told(name)
