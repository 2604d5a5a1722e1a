"""Rules of the repository as a whole: layers, imports without side effects, documentation that agrees with the code."""

import ast
import itertools
import os
import re
import runpy
import shutil
import subprocess
import sys
import textwrap

import pytest
import yaml

from whole_slide_cnn.config import load_config
from whole_slide_cnn.engines.table import ENGINES

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PACKAGE = "whole_slide_cnn"

# From the bottom up: a unit imports units of lower layers and its own. Modules not named here are commands, on top.
LAYERS = (
    ("errors", "sizes"),
    ("files",),
    ("config",),
    ("cli", "provenance"),
    ("slides",),
    ("stains", "synthesis"),
    ("augment", "models"),
    ("engines",),
    ("planning",),
    ("running",),
    ("evaluation",),
    ("heatmaps",),
    ("training",),
    ("mil", "detection"),
    ("review",),
)
# What knows nothing of the package, and what may drive it: the engine that needs it, and graph_tools also the planner.
INDEPENDENT = {
    "graph_tools": (PACKAGE + ".engines.unified", PACKAGE + ".engines.costs", PACKAGE + ".planning"),
    "tf_um_patch": (PACKAGE + ".engines.unified",),
}
PACKAGES = (PACKAGE,) + tuple(INDEPENDENT)
# What the machine has, which every part of the package may ask.
FOR_ALL = "tf_um_patch.host"
# The only modules of graph_tools that import TensorFlow; all others plan without it.
TENSORFLOW_DOORS = ("graph_tools.tensorflow.apply", "graph_tools.tensorflow.extract", "graph_tools.tensorflow.verify")
# What runs networks. Everything else works where TensorFlow is not installed.
NEED_TENSORFLOW = TENSORFLOW_DOORS + tuple(
    PACKAGE + "." + name
    for name in (
        "engines.accumulators",
        "engines.direct.engine",
        "engines.interface",
        "engines.loss_scale",
        "engines.state",
        "engines.staged.engine",
        "engines.staged.network",
        "engines.streaming.engine",
        "engines.unified.engine",
        "engines.unified.steps",
        "heatmaps.run",
        "models.build",
        "models.strips",
        "running",  # some of its modules, and of the next
        "training",
    )
)

# Units of graph_tools from the bottom up, each of which imports lower ones and itself: values, then what plans, then
# what shows plans and applies them.
GRAPH_TOOLS_LAYERS = (
    ("errors",),
    ("arrays", "files", "serial", "units"),
    ("graph",),
    ("plan",),
    ("graph_edit",),
    ("simulation",),
    ("passes",),
    ("draw", "tensorflow", "text"),
    ("cli",),
    ("__main__",),
)


def source_files(folder):
    """Python files below a folder as (dotted module name, path)."""
    for parent, _, names in sorted(os.walk(folder)):
        for name in sorted(names):
            if name.endswith(".py"):
                path = os.path.join(parent, name)
                parts = os.path.relpath(path, os.path.dirname(folder))[: -len(".py")].split(os.sep)
                yield ".".join(part for part in parts if part != "__init__"), path


def imported_modules(source):
    """Names a source imports, wherever in it: ``from a import b`` gives both ``a`` and ``a.b``."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield module
            for alias in node.names:
                yield module + "." + alias.name


def layer_of(unit):
    """Position of a unit of the package in LAYERS; commands come last."""
    for index, units in enumerate(LAYERS):
        if unit in units:
            return index
    return len(LAYERS)


def may_import(importer, imported):
    """Whether the layering lets one module of this repository import another (or a library)."""
    if imported.startswith("."):
        return False  # absolute imports only: they say which layer they reach into
    own, other = importer.split("."), imported.split(".")
    if (imported + ".").startswith(FOR_ALL + ".") and own[0] == PACKAGE:
        return True
    if other[0] in INDEPENDENT:
        drivers = INDEPENDENT[other[0]]
        return own[0] == other[0] or importer in drivers or importer.rpartition(".")[0] in drivers
    if other[0] != PACKAGE:
        return True
    if own[0] != PACKAGE or len(other) == 1:
        return own[0] == PACKAGE
    if len(own) == 1:
        return False
    lower = layer_of(other[1]) < layer_of(own[1])
    return lower or own[1] == other[1] or layer_of(own[1]) == len(LAYERS)


def test_modules_import_only_lower_layers():
    found = [
        "{} imports {}".format(module, imported)
        for package in PACKAGES
        for module, path in source_files(os.path.join(ROOT, package))
        for imported in imported_modules(read(path))
        if not may_import(module, imported)
    ]
    assert not found


def test_graph_tools_reaches_tensorflow_through_three_modules():
    modules = dict(source_files(os.path.join(ROOT, "graph_tools")))
    found = [name for name, path in modules.items() if any(map(is_tensorflow, imported_modules(read(path))))]
    assert sorted(found) == sorted(TENSORFLOW_DOORS)
    run_python("-c", IMPORT_PURE, *sorted(set(modules) - set(TENSORFLOW_DOORS)))


def test_graph_tools_imports_its_lower_layers_alone():
    level = {unit: index for index, units in enumerate(GRAPH_TOOLS_LAYERS) for unit in units}
    found = []
    for module, path in source_files(os.path.join(ROOT, "graph_tools")):
        if module == "graph_tools":
            assert not list(imported_modules(read(path)))  # of a package that is imported for one of its modules
            continue
        own = module.split(".")[1]
        for imported in imported_modules(read(path)):
            package, _, rest = imported.partition(".")
            other = rest.split(".")[0]
            if package == "graph_tools" and other and other != own and level[other] >= level[own]:
                found.append("{} imports {}".format(module, imported))
    assert not found


def is_tensorflow(imported):
    return imported.split(".")[0] in ("tensorflow", "google")


IMPORT_PURE = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
assert not {"tensorflow", "google.protobuf", "matplotlib.pyplot"} & set(sys.modules)
"""


def test_no_two_test_modules_have_one_name():
    """Folders of tests are no packages, so pytest imports each module by its name alone."""
    names = [name.rpartition(".")[2] for name, _ in source_files(os.path.join(ROOT, "tests")) if ".test_" in name]
    assert len(names) == len(set(names)), sorted(name for name in set(names) if names.count(name) > 1)


def test_every_folder_of_the_package_has_a_layer():
    folders = {module.split(".")[1] for module, _ in source_files(os.path.join(ROOT, PACKAGE)) if module.count(".") > 1}
    assert {"config", "slides", "models", "engines"} <= folders
    assert not {folder for folder in folders if layer_of(folder) == len(LAYERS)}


@pytest.mark.parametrize(
    "importer, source, allowed",
    [
        ("whole_slide_cnn.config.load", "from whole_slide_cnn.errors import ConfigError", True),
        ("whole_slide_cnn.config.load", "from whole_slide_cnn.cli import run_command", False),
        ("whole_slide_cnn.slides.reader", "def late():\n    from whole_slide_cnn import models", False),
        ("whole_slide_cnn.engines.direct", "import whole_slide_cnn.slides.canvas", True),
        ("whole_slide_cnn.engines.direct", "from whole_slide_cnn.training import loop", False),
        ("whole_slide_cnn.engines.direct", "from . import base", False),
        ("whole_slide_cnn.engines.direct", "import graph_tools", False),
        ("whole_slide_cnn.engines.unified.steps", "from graph_tools import group", True),
        ("whole_slide_cnn.engines.costs", "from graph_tools import group", True),
        ("whole_slide_cnn.planning.estimate", "from graph_tools import group", True),
        ("whole_slide_cnn.planning.estimate", "import tf_um_patch", False),
        ("whole_slide_cnn.slides.reader", "from tf_um_patch.host import first_gpu", True),
        ("whole_slide_cnn.slides.reader", "from tf_um_patch.hosts import first_gpu", False),
        ("graph_tools.passes.group", "from tf_um_patch.host import first_gpu", False),
        ("whole_slide_cnn.training.loop", "from whole_slide_cnn.train import main", False),
        ("whole_slide_cnn.demo", "from whole_slide_cnn.train import main", True),
        ("graph_tools.passes.group", "import graph_tools.tensorflow.extract\nimport numpy", True),
        ("graph_tools.passes.group", "from whole_slide_cnn import sizes", False),
        ("graph_tools.passes.group", "import whole_slide_cnn", False),
    ],
)
def test_the_layer_rule_itself(importer, source, allowed):
    assert all(may_import(importer, imported) for imported in imported_modules(source)) is allowed


IMPORT_WITHOUT = """
import importlib, sys, threading

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ABSENT:
            raise ModuleNotFoundError("No module named {!r}".format(name), name=name)

ABSENT = {"tensorflow", "horovod", "mpi4py", "cupy"}
sys.meta_path.insert(0, Absent())
for module in sys.argv[1:]:
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        assert error.name in ABSENT, error
        print(module)
assert "matplotlib.pyplot" not in sys.modules, "it looks for a screen"
assert threading.active_count() == 1, threading.enumerate()
"""


def all_modules():
    """Every module that can be imported, in the order of names."""
    modules = [name for package in PACKAGES for name, _ in source_files(os.path.join(ROOT, package))]
    return sorted(name for name in modules if not name.endswith("__main__"))


def test_every_pure_module_imports_where_there_is_no_tensorflow_and_starts_nothing():
    check_failed(run_python("-c", IMPORT_WITHOUT, *all_modules()).split())


def check_failed(modules):
    """Whether just the modules that need TensorFlow could not be imported."""
    expected = {module: name for name in NEED_TENSORFLOW for module in modules if (module + ".").startswith(name + ".")}
    assert [module for module in modules if module not in expected] == []
    assert set(expected.values()) == set(NEED_TENSORFLOW)


@pytest.mark.slow
def test_every_pure_module_imports_in_an_environment_without_tensorflow(tmp_path, monkeypatch):
    """What setup.py asks for besides TensorFlow, in an environment of its own."""
    venv = str(tmp_path / "venv")
    subprocess.run((sys.executable, "-m", "venv", venv), check=True)
    python = os.path.join(venv, "bin", "python")
    needed = [item for item in setup_arguments(monkeypatch)["install_requires"] if not item.startswith("tensorflow")]
    install = (python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    if subprocess.run(install + tuple(needed), stdout=subprocess.DEVNULL).returncode:
        pytest.skip("the packages cannot be downloaded")
    check_failed(run_python("-c", IMPORT_WITHOUT, *all_modules(), python=python).split())


def test_every_engine_folder_is_in_the_table_and_compared():
    engines = os.path.join(ROOT, PACKAGE, "engines")
    folders = {name for name in os.listdir(engines) if os.path.exists(os.path.join(engines, name, "__init__.py"))}
    assert folders == set(ENGINES)
    compared = run_python("-c", "import exactness; print(*exactness.compared_engines())", path="benchmarks").split()
    assert {name.split("-")[0] for name in compared} == folders - {"direct"}


def test_every_pass_and_command_is_in_the_architecture():
    passes = {module.rpartition(".")[2] for module in modules_of("graph_tools", "graph_tools.passes.")}
    assert set(table_of("architecture.md", "module of `graph_tools.passes`")) == passes
    commands = {module.rpartition(".")[2] for module in commands_of(PACKAGE)}
    assert set(table_of("architecture.md", "command")) == commands


def test_every_folder_of_the_package_is_in_the_architecture():
    folders = {name.split(".")[1] for name in modules_of(PACKAGE, PACKAGE + ".") if name.count(".") > 1}
    listed = re.findall(r"(\w+)/`", "".join(read(os.path.join(ROOT, "docs", "architecture.md"))))
    assert folders <= set(listed)


def test_pictures_show_the_layers_as_they_are():
    drawn = runpy.run_path(os.path.join(ROOT, "tools", "pictures.py"))["pictures"](LAYERS)
    assert {name: read(os.path.join(ROOT, "docs", "pictures", name)) for name in drawn} == drawn


def modules_of(package, prefix):
    """Dotted names of the modules of a package that begin with a prefix, without the package of that name."""
    return [name for name, _ in source_files(os.path.join(ROOT, package)) if name.startswith(prefix)]


def commands_of(package):
    """Dotted names of the modules that are commands."""
    pattern = re.compile(r"^    run_command\(main\)", re.MULTILINE)
    return [name for name, path in source_files(os.path.join(ROOT, package)) if pattern.search(read(path))]


def table_of(page, heading):
    """First cells of the rows of the table whose first column has this heading, without their quotes."""
    lines = read(os.path.join(ROOT, "docs", page)).split("\n")
    (start,) = [index for index, line in enumerate(lines) if line.startswith("| {} |".format(heading))]
    rows = itertools.takewhile(lambda line: line.startswith("|"), lines[start + 2 :])
    return [row.split("|")[1].strip().strip("`") for row in rows]


HELP_OF_ALL = """
import importlib, sys
for name in sys.argv[1:]:
    try:
        importlib.import_module(name).main(["--help"])
    except SystemExit as end:
        assert not end.code, name
    assert "tensorflow" not in sys.modules, name + " imports TensorFlow before it reads its arguments"
"""


def test_every_command_has_help_without_tensorflow():
    commands = commands_of(PACKAGE)
    assert {"whole_slide_cnn.split", "whole_slide_cnn.check_slides", "whole_slide_cnn.train"} <= set(commands)
    shown = run_python("-c", HELP_OF_ALL, *commands)
    assert [name for name in commands if "usage: python -m {} ".format(name) not in shown] == []


def setup_arguments(monkeypatch):
    """What setup.py calls setup with."""
    setuptools = pytest.importorskip("setuptools")
    given = {}
    monkeypatch.setattr(setuptools, "setup", given.update)
    monkeypatch.chdir(ROOT)
    runpy.run_path("setup.py")
    return given


def test_setup_and_make_accept_the_same_pythons(monkeypatch):
    specifiers = pytest.importorskip("packaging.specifiers")
    given = setup_arguments(monkeypatch)
    check = runpy.run_path(os.path.join("tools", "check_python.py"))
    by_make = {version for version in [(3, minor) for minor in range(20)] if check["supported"](version)}
    requires = specifiers.SpecifierSet(given["python_requires"])
    assert by_make == {(3, minor) for minor in range(20) if "3.{}.4".format(minor) in requires}
    assert by_make == {(3, minor) for minor in (7, 10, 11, 12, 13)}


def test_every_package_is_installed(monkeypatch):
    given = setup_arguments(monkeypatch)
    modules = [module for package in PACKAGES for module in packages_of(package)]
    assert sorted(given["packages"]) == sorted(modules)


def packages_of(package):
    """Dotted names of the folders of a package that hold modules."""
    for module, path in source_files(os.path.join(ROOT, package)):
        if os.path.basename(path) == "__init__.py":
            yield module


def test_readme_names_only_what_exists():
    readme = read(os.path.join(ROOT, "README.md"))
    makefile = read(os.path.join(ROOT, "Makefile"))
    targets = re.findall(r"(?:^|&& |`)make ([a-z-]+)", readme, re.MULTILINE)
    files = re.findall(r"\]\((?!http)([^)#]+)\)", readme) + re.findall(r"`(configs/\w+\.yaml)`", readme)
    assert {"demo", "test"} <= set(targets) and files
    assert [name for name in targets if not re.search("^{}:".format(name), makefile, re.MULTILINE)] == []
    assert [name for name in files if not os.path.exists(os.path.join(ROOT, name))] == []


def test_readme_calls_commands_with_options_they_have():
    calls = re.findall(r"python -m (whole_slide_cnn[\w.]+)([^`\n]*)", read(os.path.join(ROOT, "README.md")))
    assert PACKAGE + ".train" in dict(calls)
    for module, arguments in calls:
        source = read(os.path.join(ROOT, *module.split(".")) + ".py")
        assert [word for word in arguments.split() if word[:2] == "--" and '"{}"'.format(word) not in source] == []


def test_configuration_in_the_readme_is_valid(tmp_path):
    (example,) = re.findall(r"```yaml\n(.*?)```", read(os.path.join(ROOT, "README.md")), re.DOTALL)
    shutil.copy(os.path.join(ROOT, "configs", "base.yaml"), str(tmp_path))
    path = tmp_path / "mine.yaml"
    path.write_text(textwrap.dedent(example), encoding="utf-8")
    assert load_config(str(path)).data.mpp == 2.0


def test_what_the_code_cites_of_the_architecture_is_there():
    """As in: (architecture, law 5), or (architecture, streaming)."""
    headings = re.findall(r"^#+ (.+)$", read(os.path.join(ROOT, "docs", "architecture.md")), re.MULTILINE)
    known = {heading.partition(":")[0].lower() for heading in headings}
    cited = {}
    for package in PACKAGES:
        for _, path in source_files(os.path.join(ROOT, package)):
            text = " ".join(read(path).split())
            for section in re.findall(r"\barchitecture, (law \d+|\w+)", text):
                cited.setdefault(section, []).append(path)
            assert not re.search(r"\bdesign, (law|section)", text), path
    assert {"law 2", "law 5", "streaming"} <= set(cited)
    assert {section: paths for section, paths in cited.items() if section not in known} == {}


def test_hooks_run_tools_that_setup_installs(monkeypatch):
    lint = {re.split("[<>=;]", item)[0] for item in setup_arguments(monkeypatch)["extras_require"]["lint"]}
    (repository,) = load_yaml(".pre-commit-config.yaml")["repos"]
    assert repository["repo"] == "local"
    for hook in repository["hooks"]:
        runner, tool = hook["entry"].split()[:2]
        assert hook["language"] == "system" and os.access(os.path.join(ROOT, runner), os.X_OK), hook["id"]
        assert tool in lint or tool + "-py" in lint, hook["id"]


def test_workflows_call_what_is_there():
    makefile = read(os.path.join(ROOT, "Makefile"))
    commands = {}
    for name in ("ci.yml", "scheduled.yml"):
        for job in load_yaml(os.path.join(".github", "workflows", name))["jobs"].values():
            commands[name] = [step["run"] for step in job["steps"] if step.get("run", "").startswith(".ci/")]
            for target in job.get("strategy", {}).get("matrix", {}).get("target", []):
                assert re.search("^{}:".format(target), makefile, re.MULTILINE), target
    assert commands["ci.yml"] == [".ci/install-classic-python", ".ci/run"]
    assert len(commands["scheduled.yml"]) == 2
    for script in {command.split()[0] for called in commands.values() for command in called}:
        assert os.access(os.path.join(ROOT, script), os.X_OK), script


def load_yaml(path):
    return yaml.safe_load(read(os.path.join(ROOT, path)))


def test_no_file_names_folders_of_the_machine_it_was_written_on():
    pattern = re.compile(r"(?<![\w.~}])/(root|home|work|Users|tmp/v)/")
    found = [path for path in tracked_files() if pattern.search(read(path, errors="replace"))]
    assert not found


def tracked_files():
    """Files of the checkout that git has or would add."""
    if shutil.which("git") is None or not os.path.exists(os.path.join(ROOT, ".git")):
        pytest.skip("this copy is not a git checkout")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout.decode("utf-8")
    paths = [os.path.join(ROOT, name) for name in listed.split("\0") if name]
    assert paths
    return [path for path in paths if os.path.isfile(path)]


def read(path, **options):
    with open(path, encoding="utf-8", **options) as stream:
        return stream.read()


def run_python(*arguments, python=sys.executable, path=""):
    """Standard output of a fresh interpreter in the repository; fails with its standard error.

    Args:
        path: a folder of the repository that it finds modules in, besides the repository.
    """
    folders = os.pathsep.join((ROOT, os.path.join(ROOT, path)))
    done = subprocess.run(
        (python,) + arguments,
        cwd=ROOT,
        env=dict(os.environ, PYTHONPATH=folders),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        universal_newlines=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
