"""The wheel, the import names, the commands' help."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from importlib.metadata import packages_distributions

import pytest

from product import BIN, ROOT, environment

PACKAGES = {"data_pipeline", "envs", "rl", "serving"}


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


@pytest.mark.parametrize("package", sorted(PACKAGES))
def test_import_name_is_claimed_by_no_other_distribution(package):
    assert set(packages_distributions()[package]) == {"swing-rl"}


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


@pytest.mark.parametrize(
    ("name", "figure"), [("features", "rows_per_cpu_s"), ("simulator", "slot_steps_per_cpu_s_b1024")]
)
def test_benchmark_prints_the_shape_that_all_share(name, figure):
    import json

    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", "--quick", "--json", "-"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    told = json.loads(done.stdout.splitlines()[-1])
    assert set(told) == {"benchmark", "when", "commit", "machine", "figures", "ratios", "skipped"}
    assert told["figures"][figure]["median"] > 0
