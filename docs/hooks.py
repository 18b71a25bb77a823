"""Hooks of mkdocs: repository files outside docs/ become pages, and each package gets a page of its API.

A link in a page is relative to the file, as GitHub resolves it. A link to another page is rewritten for the site.
A link to a recipe becomes one to the page of the recipes. Links to other source files become plain text, because the
site has no sources. A link to a missing file is left as it is: mkdocs reports it, and the build fails.
"""

import ast
import os
import pathlib
import re

from mkdocs.structure.files import File

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGES = ("CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "data_prep/README.md", "launch/README.md")
MEASUREMENTS = "benchmarks/results/*.md"
ASSETS = ("benchmarks/results/*.png", "launch/slurm.log")
LINK = re.compile(r"(\[[^\]]*\])\(([^)#\s:]+)(#[^)\s]*)?\)")
IMAGE = re.compile(r'(<img [^>]*src=")([^":]+)(")')


COMMANDS = {
    "vlbert_jax.main": "vlbert_jax/main.py",
    "vlbert_jax.predict": "vlbert_jax/predict.py",
    "vlbert_jax.app": "vlbert_jax/app.py",
    "vlbert_jax.convert": "vlbert_jax/convert.py",
    "vlbert_jax.tasks.answer.accuracy": "vlbert_jax/tasks/answer/accuracy.py",
    "experiments.run": "experiments/run.py",
    "data_prep.build": "data_prep/build.py",
    "data_prep.extract_regions": "data_prep/extract_regions.py",
}


def modules() -> dict[str, list[str]]:
    """Return the modules of the API by page: those of no package, then those of each package."""
    pages: dict[str, list[str]] = {"vlbert_jax": []}
    for path in sorted((ROOT / "vlbert_jax").rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        if not path.read_text().strip() or name in COMMANDS or name in ("vlbert_jax.configs", "vlbert_jax.examples"):
            continue
        in_package = path.parent != ROOT / "vlbert_jax"
        pages.setdefault(name.split(".")[1] if in_package else "vlbert_jax", []).append(name)
    return pages


def commands() -> str:
    """Return the page of the commands: the docstring of each, which is what --help prints."""
    parts = ["# Commands\n\nEvery command answers `--help` with the text below and its options.\n"]
    for name, path in COMMANDS.items():
        text = ast.get_docstring(ast.parse((ROOT / path).read_text(encoding="utf-8")))
        parts.append(f"## {name}\n\n```text\n{text}\n```\n")
    return "\n".join(parts)


def recipes() -> str:
    """Return the page of the recipes: their sources, whose comments and docstrings describe every field."""
    parts = ["# Recipes and config fields\n\nThe comments describe every field; `common.py` has shared fields.\n"]
    for path in sorted((ROOT / "configs").glob("*.py")):
        if path.name != "__init__.py":
            parts.append(f"## configs/{path.name}\n\n```python\n{path.read_text(encoding='utf-8')}```\n")
    return "\n".join(parts)


def on_files(files, config):
    """Add the pages of the repository and the pages of the API."""
    for pattern in (*PAGES, MEASUREMENTS, *ASSETS):
        for path in sorted(ROOT.glob(pattern)):
            name = path.relative_to(ROOT).as_posix()
            files.append(File.generated(config, name, abs_src_path=str(path)))
    files.append(File.generated(config, "api/commands.md", content=commands()))
    files.append(File.generated(config, "api/configs.md", content=recipes()))
    for page, names in modules().items():
        title = "vlbert_jax" if page == "vlbert_jax" else f"vlbert_jax.{page}"
        listed = "\n".join(f"::: {name}\n    options:\n      show_submodules: false\n" for name in names)
        files.append(File.generated(config, f"api/{page}.md", content=f"# {title}\n\n{listed}"))
    return files


def on_config(config):
    """Replace the entry `API: api/` of the navigation by the pages that exist."""
    for entry in config.nav:
        if entry.get("API") == "api/":
            entry["API"] = [f"api/{page}.md" for page in ("commands", "configs", *modules())]
    return config


def on_page_markdown(markdown, page, config, files):
    """Rewrite links between repository files for the site."""
    if page.file.src_uri.startswith("api/"):
        return markdown
    generated = (ROOT / page.file.src_uri).is_file()
    source = ROOT / page.file.src_uri if generated else ROOT / "docs" / page.file.src_uri

    def target_of(link: str) -> str | None:
        """Return the page or asset that a link names, "" for a source file, None for a missing file."""
        path = (source.parent / link).resolve()
        if not path.exists() or not path.is_relative_to(ROOT):
            return None
        inside = path.relative_to(ROOT).as_posix()
        name = inside.removeprefix("docs/") if inside.startswith("docs/") else inside
        name = "index.md" if name == "README.md" else name
        name = "api/configs.md" if name.startswith("configs/") else name
        return name if files.get_file_from_path(name) else ""

    def relative(name: str) -> str:
        return os.path.relpath(name, os.path.dirname(page.file.src_uri) or ".")

    def link(match: re.Match) -> str:
        name = target_of(match[2])
        if name is None:
            return match[0]
        if not name:
            return match[1][1:-1]
        return f"{match[1]}({relative(name)}{match[3] or ''})"

    def image(match: re.Match) -> str:
        name = target_of(match[2])
        if not name:
            raise ValueError(f"{source}: the image {match[2]} does not exist or is not an asset of the site")
        # An <img> is not rewritten by mkdocs; with use_directory_urls: false both paths have the same depth.
        return f"{match[1]}{relative(name)}{match[3]}"

    return IMAGE.sub(image, LINK.sub(link, markdown))
