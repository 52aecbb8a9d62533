"""What imports what, read from the sources: holds in a checkout where nothing is installed."""

import ast
import sys
import tomllib
from pathlib import Path

import pytest

pytestmark = pytest.mark.packaging

REPO = Path(__file__).resolve().parents[2]
SHAPES = sorted((REPO / "gpuconv" / "shapes").glob("*.py"))


def imports(path: Path) -> list[tuple[int, int, str]]:
    """Return (line, relative level, module) for every import in a file, those inside functions included."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), filename=str(path))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, 0, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append((node.lineno, node.level, node.module or ""))
    return found


def offences(path: Path, allowed) -> list[str]:
    return [
        f"{path.relative_to(REPO)}:{line}: {'.' * level}{module}"
        for line, level, module in imports(path)
        if not allowed(level, module.partition(".")[0])
    ]


def test_shapes_imports_the_standard_library_alone():
    def allowed(level: int, top: str) -> bool:
        return level == 1 or (level == 0 and top in sys.stdlib_module_names)

    assert len(SHAPES) > 3
    assert [line for path in SHAPES for line in offences(path, allowed)] == []


def test_kernels_import_triton_the_standard_library_and_themselves():
    kernels = REPO / "kernels"
    sources = sorted(kernels.rglob("*.py"))
    assert sources
    found = []
    for path in sources:
        inside = len(path.relative_to(kernels).parts) - 1  # as many dots stay in kernels/tl or kernels/cu

        def allowed(level: int, top: str, inside: int = inside) -> bool:
            return 0 < level <= inside or (level == 0 and (top == "triton" or top in sys.stdlib_module_names))

        found += offences(path, allowed)
    assert found == []


def test_gpuconv_imports_itself_relatively():
    sources = sorted((REPO / "gpuconv").rglob("*.py"))
    assert sources
    assert [line for path in sources for line in offences(path, lambda level, top: level > 0 or top != "gpuconv")] == []


def test_packages_list_equals_the_folders():
    setuptools = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    gpuconv = {path.parent for path in (REPO / "gpuconv").rglob("*.py")}
    kernels = {path.parent for path in (REPO / "kernels").rglob("*.py")}
    folders = {".".join(folder.relative_to(REPO).parts) for folder in gpuconv}
    folders |= {"gpuconv." + ".".join(folder.relative_to(REPO).parts) for folder in kernels}
    assert sorted(setuptools["packages"]) == sorted({*folders, "gpuconv.bench"})
    assert [folder for folder in gpuconv | kernels if not (folder / "__init__.py").is_file()] == []
    for package, folder in setuptools["package-dir"].items():
        assert (REPO / folder / "__init__.py").is_file(), f"{package} is mapped to {folder}"


def test_no_module_takes_the_name_of_a_framework():
    """Folders may: imports inside are relative, and nothing in them is run as a script."""
    names = {path.stem for folder in ("gpuconv", "kernels") for path in (REPO / folder).rglob("*.py")}
    assert names.isdisjoint({"torch", "triton", "cupy", "numpy"})


def test_versions_agree():
    version = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert f"\nversion: {version}\n" in (REPO / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\n## [{version}]" in (REPO / "CHANGELOG.md").read_text(encoding="utf-8")
