"""Test that the files, symbols and commands in the documentation exist."""

import ast
import configparser
import importlib
import importlib.util
import pathlib
import re
import shlex

import pytest

ROOT = pathlib.Path(__file__).parent.parent
EXAMPLE = {"K": "answer", "X": "vqa"}  # a kind and its data in the checklist of CONTRIBUTING.md
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")]
PAGES += [ROOT / "data_prep/README.md", ROOT / "launch/README.md"]
PAGES += sorted((ROOT / "docs").rglob("*.md"))
WRITTEN_PAGES = PAGES + [ROOT / "CHANGELOG.md", *sorted((ROOT / "benchmarks/results").glob("*.md"))]
EXCLUDED_WORDS = re.compile(
    r"\b(officially|whole or not at all|of one's own|of yours|whoever|twins?|chief"
    r"|behaviour|colours?|licence|normalis\w+|initialis\w+)\b", re.IGNORECASE
)  # fmt: skip
FOLDERS = ("vlbert_jax/", "configs/", "data_prep/", "tests/", "docs/", "launch/", "benchmarks/", "experiments/", ".ci/")
SPAN = re.compile(r"`([^`\n]+)`")


def ids(page: pathlib.Path) -> str:
    return page.relative_to(ROOT).as_posix()


def text_of(page: pathlib.Path) -> str:
    return page.read_text(encoding="utf-8")


def without_blocks(text: str) -> str:
    return re.sub(r"^ *```.*?^ *```", "", text, flags=re.S | re.M)


def blocks(text: str, language: str) -> list[str]:
    found = re.findall(r"^( *)```(\w*)\n(.*?)^ *```", text, flags=re.S | re.M)
    return [re.sub(f"^{indent}", "", code, flags=re.M) for indent, name, code in found if name == language]


def substituted(span: str) -> str:
    return re.sub(r"\b[KX]\b|(?<=/)[KX](?=_)", lambda found: EXAMPLE[found[0]], span)


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_files_exist(page):
    text = without_blocks(text_of(page))
    for span in SPAN.findall(text):
        path = substituted(span).partition(":")[0]
        if path.startswith(FOLDERS) and not has_placeholder(path) and re.fullmatch(r"[\w./+-]+", path):
            assert (ROOT / path).exists(), f"{ids(page)} names {span}"
    for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)\s]*)?\)", text) + re.findall(r'<img [^>]*src="([^":]+)"', text):
        if not target.startswith(("api/", "../api/")):  # docs/hooks.py generates these pages
            assert (page.parent / target).exists(), f"{ids(page)} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_symbols_exist(page):
    """Symbols listed after a file, as in `path.py`: `symbol`, `symbol`, are in that file."""
    for path, symbols in re.findall(r"`([\w./]+\.py)`: (`[\w.]+`(?:, `[\w.]+`)*)", text_of(page)):
        source = (ROOT / path).read_text(encoding="utf-8")
        for symbol in SPAN.findall(symbols):
            assert re.search(rf"\b{re.escape(symbol)}\b", source), f"{ids(page)}: {path} has no {symbol}"


def test_names_in_the_checklist_exist():
    text = text_of(ROOT / "CONTRIBUTING.md")
    checklist = text[text.index("## A new task") : text.index("## A new architecture")]
    base = (ROOT / "vlbert_jax/tasks/base.py").read_text(encoding="utf-8")
    batch = (ROOT / "vlbert_jax/batch.py").read_text(encoding="utf-8")
    registry = (ROOT / "vlbert_jax/tasks/__init__.py").read_text(encoding="utf-8")
    names = [span for span in SPAN.findall(checklist) if re.fullmatch(r"[A-Za-z_]+", span)]
    assert len(names) > 20
    elsewhere = {*EXAMPLE, *EXAMPLE.values(), "X_images", "demo", "predict"}
    for name in set(names) - elsewhere:
        assert re.search(rf"\b{name}\b", base + batch + registry), f"CONTRIBUTING.md names {name}"


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_imports_in_python_examples_exist(page):
    for code in blocks(text_of(page), "python"):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "vlbert_jax":
                module = importlib.import_module(node.module)
                for name in (alias.name for alias in node.names):
                    found = hasattr(module, name) or importlib.util.find_spec(f"{node.module}.{name}")
                    assert found, f"{ids(page)}: {ast.unparse(node)}"


# --- Commands -------------------------------------------------------------------------------------


SCRIPTS = {
    "vlbert-train": "vlbert_jax.main",
    "vlbert-predict": "vlbert_jax.predict",
    "vlbert-app": "vlbert_jax.app",
    "vlbert-report": "vlbert_jax.report",
    "vlbert-convert": "vlbert_jax.convert",
    "vlbert-build": "data_prep.build",
    "vlbert-extract": "data_prep.extract_regions",
}


def commands(page: pathlib.Path) -> list[list[str]]:
    """Return module and arguments of each `python -m` and console script in a page."""
    found = []
    for code in blocks(text_of(page), ""):
        for line in code.replace("\\\n", " ").splitlines():
            line = line.partition(" #")[0].partition(";")[2 if line.lstrip().startswith("scene=") else 0].strip()
            if line.startswith("python -m "):
                found.append(shlex.split(line)[2:])
            elif line.startswith("vlbert-"):
                script, *args = shlex.split(line)
                found.append([SCRIPTS[script], *args])
    return found


COMMANDS = [(page, argv) for page in PAGES for argv in commands(page)]


def has_placeholder(value: str) -> bool:
    return bool(re.search(r"…|\.\.\.|\b[A-Z_]{3,}\b", value))


def config_of(spec: str):
    """Return the config of FILE.py:VARIANT or NAME:VARIANT."""
    name, _, variant = spec.partition(":")
    path = ROOT / (name if name.endswith(".py") else f"configs/{name}.py")
    module = importlib.util.module_from_spec(found := importlib.util.spec_from_file_location(path.stem, path))
    found.loader.exec_module(module)
    return module.get_config(*[variant] if variant else [])


def test_console_scripts_are_installed():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    lines = setup["options.entry_points"]["console_scripts"].strip().split("\n")
    assert {line.partition("=")[0].strip() for line in lines} == SCRIPTS.keys()


def test_commands_are_found():
    assert len(COMMANDS) > 30
    assert {argv[0] for _, argv in COMMANDS} >= {"vlbert_jax.main", "vlbert_jax.predict", "data_prep.build"}


@pytest.mark.parametrize(("page", "argv"), COMMANDS, ids=[f"{ids(p)}-{i}" for i, (p, _) in enumerate(COMMANDS)])
def test_commands_parse(page, argv):
    module, *args = argv
    if module == "data_prep.beam":  # options of Beam precede the command
        module, *args = [f"data_prep.{args[args.index('--') + 1]}", *args[args.index("--") + 2 :]]
    path = ROOT / (module.replace(".", "/") + ".py")
    assert path.exists(), f"{ids(page)} runs {module}"
    source = "\n".join(file.read_text(encoding="utf-8") for file in path.parent.glob("*.py"))
    if module == "vlbert_jax.main":
        (spec,) = [arg.removeprefix("--config=") for arg in args if arg.startswith("--config=")]
        if has_placeholder(spec):
            return
        fields = config_of(spec)
        for arg in args:
            if field := re.match(r"--config\.([\w.]+)=", arg):
                value = fields
                for name in field[1].split("."):
                    assert name in value, f"{ids(page)}: {spec} has no field {field[1]}"
                    value = value[name]
            elif arg.startswith("--mode="):
                assert arg in ("--mode=train", "--mode=evaluate", "--mode=probe", "--mode=compile")
        return
    for arg in args:
        if arg.startswith("--"):
            option = re.match(r"--([\w-]+)", arg)[1]
            known = f'"--{option}"' in source or f'"{option}"' in source or f"--{option}" in registry_options()
            assert known, f"{ids(page)}: {module} has no option --{option}"
    if module == "data_prep.build":
        assert f'"{args[0]}"' in source, f"{ids(page)}: there is no builder {args[0]}"


def registry_options() -> set[str]:
    return set(re.findall(r'"(--\w+)', (ROOT / "vlbert_jax/tasks/__init__.py").read_text(encoding="utf-8")))


# --- The documentation ----------------------------------------------------------------------------


def draw_imports():
    found = importlib.util.spec_from_file_location("draw_imports", ROOT / "docs/draw_imports.py")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def test_the_drawing_shows_the_present_imports():
    script = draw_imports()
    assert script.TARGET.read_text(encoding="utf-8") == script.drawing(), "run: python docs/draw_imports.py"


def test_an_import_that_points_upwards_is_reported(tmp_path):
    for name, code in {"data/a.py": "from vlbert_jax.tasks import b\n", "tasks/b.py": ""}.items():
        path = tmp_path / "vlbert_jax" / name
        path.parent.mkdir(parents=True)
        path.write_text(code)
    (tmp_path / "data_prep").mkdir()
    with pytest.raises(ValueError, match=r"vlbert_jax.data.a imports vlbert_jax.tasks.b: tasks is not below data"):
        draw_imports().drawing(tmp_path)


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in PAGES[1:]:
        name = ids(page).removeprefix("docs/")
        assert f" {name}\n" in navigation, f"{name} is not in mkdocs.yml"


@pytest.mark.parametrize("page", WRITTEN_PAGES, ids=ids)
def test_pages_have_no_excluded_words(page):
    found = EXCLUDED_WORDS.findall(SPAN.sub("", text_of(page)))
    assert not found, f"{ids(page)} has {', '.join(found)}: see the rules in CONTRIBUTING.md"


def test_the_readme_is_short():
    assert len(text_of(ROOT / "README.md").splitlines()) <= 150
