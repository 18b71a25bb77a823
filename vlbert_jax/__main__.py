"""Say which commands there are."""

from vlbert_jax import __version__

COMMANDS = {
    "vlbert_jax.main": ("vlbert-train", "train, evaluate, or compile for a machine"),
    "vlbert_jax.predict": ("vlbert-predict", "ask a trained model about images"),
    "vlbert_jax.app": ("vlbert-app", "ask on a local web page"),
    "vlbert_jax.report": ("vlbert-report", "compare runs on one page"),
    "vlbert_jax.convert": ("vlbert-convert", "convert weights, in and out"),
    "data_prep.build": ("vlbert-build", "build the records of a corpus"),
    "data_prep.extract_regions": ("vlbert-extract", "find regions in images"),
}


def main() -> None:
    """Print the commands."""
    print(f"vlbert_jax {__version__}\n\nCommands; each answers --help:")
    for module, (script, about) in COMMANDS.items():
        print(f"  python -m {module:26} or {script:16} {about}")
    print("\nThe demo: python -m vlbert_jax.main --config=pretrain --workdir=workdirs/demo")


if __name__ == "__main__":
    main()
